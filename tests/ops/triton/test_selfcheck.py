"""Kernels prove themselves before they serve; one that is wrong, in whichever way, is left out by name."""

from __future__ import annotations

import json

import pytest
import torch

from scumble.errors import InvalidRequest, ScumbleError
from scumble.ops import choose
from scumble.ops.reference import REFERENCE
from scumble.ops.triton import cases, linear, selfcheck
from scumble.ops.triton.ops import TritonOps
from tiny import tiny_config


@pytest.fixture(autouse=True)
def _few_tokens(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    for name, value in (("TOKENS", 6), ("ALONE", 2), ("KEYS", 40)):
        monkeypatch.setattr(cases, name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_all_kernels_pass(dtype: torch.dtype, device: torch.device) -> None:
    assert selfcheck.examine(device, dtype, tiny_config()) == {}


@pytest.mark.parametrize("form", ["fp8", "int8", "int4", "nvfp4"])
def test_products_in_every_format_pass(form: str, device: torch.device) -> None:
    sizes = {"hidden_size": 64, "moe_intermediate_size": 32, "intermediate_size": 48}
    assert selfcheck.examine_format(device, torch.bfloat16, tiny_config(**sizes), form) is None


def test_a_format_whose_products_are_wrong_is_refused_at_its_first_weight(device, monkeypatch) -> None:
    right = linear.linear
    monkeypatch.setattr(linear, "linear", lambda *arguments: right(*arguments) * 1.1)
    ops = TritonOps(faults=lambda form: selfcheck.format_fault(device, torch.bfloat16, tiny_config(), form))
    with pytest.raises(InvalidRequest, match="dtype int4 cannot be used on this card: its results are off by"):
        ops.pack(torch.randn(32, 32, device=device), "int4")


def only(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(selfcheck, "OPERATIONS", (name,))


FAULTS = {
    "a wrong number": (lambda out, x: out + (x.shape[0] > 2) * 0.1, "off by"),
    "a number that was not written": (lambda out, x: out.index_fill(0, torch.tensor([1]), float("nan")), "missing"),
    "another number each time": (lambda out, x: out * (1 + 5e-5 * torch.rand(1)), "second time"),
    "a number that depends on the others": (lambda out, x: out * (1 + 1e-5 * x.shape[0]), "tokens beside it"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_kernel_is_refused_and_the_reason_is_named(fault: str, device, monkeypatch) -> None:
    change, reason = FAULTS[fault]
    only(monkeypatch, "linear")
    right = TritonOps.linear
    monkeypatch.setattr(TritonOps, "linear", lambda self, x, weight: change(right(self, x, weight), x))
    verdict = selfcheck.examine(device, torch.float32, tiny_config())
    assert list(verdict) == ["linear"]
    assert reason in verdict["linear"]


def test_a_kernel_that_does_not_compile_is_refused(device, monkeypatch, caplog) -> None:
    only(monkeypatch, "geglu")

    def broken(self, gate, up):
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(TritonOps, "geglu", broken)
    verdict = selfcheck.refused(device, torch.float32, tiny_config())
    assert "shared memory" in verdict["geglu"]
    assert "operation geglu is served by torch" in caplog.text
    assert TritonOps(verdict).geglu == REFERENCE.geglu


def test_the_verdict_is_kept_for_this_card_and_these_sizes(device, monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(selfcheck, "examine", lambda *arguments: calls.append(arguments) or {"router": "because"})
    for _ in range(2):
        assert selfcheck.refused(device, torch.float32, tiny_config()) == {"router": "because"}
    selfcheck.refused(device, torch.float32, tiny_config(hidden_size=64))
    assert len(calls) == 2


def test_a_reason_that_may_go_away_is_not_kept(device, monkeypatch, tmp_path) -> None:
    only(monkeypatch, "geglu")
    right = TritonOps.geglu

    def no_memory(self, gate, up):
        raise torch.OutOfMemoryError("another process has it")

    monkeypatch.setattr(TritonOps, "geglu", no_memory)
    assert "another process has it" in selfcheck.refused(device, torch.float32, tiny_config())["geglu"]
    monkeypatch.setattr(TritonOps, "geglu", right)
    assert selfcheck.refused(device, torch.float32, tiny_config()) == {}


def test_what_is_refused_is_said_at_every_load(device, monkeypatch, caplog) -> None:
    monkeypatch.setattr(selfcheck, "examine", lambda *arguments: {"router": "because"})
    for _ in range(2):
        selfcheck.refused(device, torch.float32, tiny_config())
    assert caplog.text.count("operation router is served by torch on this card: because") == 2


def test_a_kernel_that_makes_the_card_unusable_ends_loading_with_what_to_do(device, monkeypatch) -> None:
    """CUDA answers every later call with the same error: no reference could serve in this process."""
    only(monkeypatch, "geglu")

    def faulty(self, gate, up):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with …")

    monkeypatch.setattr(TritonOps, "geglu", faulty)
    monkeypatch.setattr(selfcheck, "_is_usable", lambda device: False)
    with pytest.raises(ScumbleError, match=r"operation geglu made the card fault .* illegal memory .*SCUMBLE_OPS=ref"):
        selfcheck.refused(device, torch.float32, tiny_config())


def test_a_kernel_of_single_steps_that_is_wrong_is_refused(device, monkeypatch) -> None:
    only(monkeypatch, "attend_all")
    right = TritonOps.attend_all
    monkeypatch.setattr(
        TritonOps, "attend_all", lambda self, q, *rest: right(self, q, *rest) * (2 if len(q) == 1 else 1)
    )
    assert "of one token: its results are off" in selfcheck.examine(device, torch.float32, tiny_config())["attend_all"]


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "HOME"])
def test_a_cache_that_cannot_be_written_stops_nothing(variable: str, device, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(selfcheck, "examine", lambda *arguments: {})
    (tmp_path / "file").touch()
    if variable == "HOME":  # a user without one, as in some containers
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(selfcheck.Path, "home", lambda: _raise(RuntimeError("Could not determine home directory.")))
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert selfcheck.refused(device, torch.float32, tiny_config()) == {}


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("content", ["", "[1]", "{", "\x00"])
def test_a_damaged_verdict_is_made_anew(content: str, device, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(selfcheck, "examine", lambda *arguments: {})
    selfcheck.refused(device, torch.float32, tiny_config())
    (path,) = (tmp_path / "scumble" / "triton").iterdir()
    path.write_text(content)
    assert selfcheck.refused(device, torch.float32, tiny_config()) == {}
    assert json.loads(path.read_text()) == {}


def test_without_a_card_others_serve() -> None:
    assert "triton" not in choose("cpu", torch.float32).line()
    with pytest.raises(InvalidRequest, match="triton cannot serve this model here: the device is cpu"):
        choose("cpu", torch.float32, name="triton")

"""Which operations serve: the quickest that can, or the named one; and the reasons, for people."""

import subprocess
import sys
from typing import cast

import pytest
import torch

from scumble import LLM
from scumble.errors import InvalidRequest
from scumble.model.layer import Layer
from scumble.ops import REFERENCE, choose
from scumble.ops.cpu import binary, native
from scumble.ops.cpu.binary import InstructionSet, choose_instructions
from scumble.placement import choose_dtype
from tiny import save_folder, tiny_config, tiny_model

AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512_vnni")
needs_kernels = pytest.mark.skipif(native.library() is None, reason="no compiler, or a processor without AVX2")


@pytest.fixture(autouse=True)
def nobody_names_one(monkeypatch):
    monkeypatch.delenv("SCUMBLE_OPS", raising=False)
    monkeypatch.delenv("SCUMBLE_INSTRUCTIONS", raising=False)


@needs_kernels
def test_the_kernels_serve_bfloat16_on_a_cpu():
    choice = choose("cpu", torch.bfloat16, tiny_config())
    assert (choice.ops.name, choice.forced) == ("cpu", False)
    assert choice.line() == f"operations: cpu, {native.instructions()}"


@pytest.mark.parametrize(
    ("device", "dtype", "changes", "reason"),
    [
        ("meta", torch.bfloat16, {}, "the device is meta"),
        ("cpu", torch.float32, {}, "the model is in float32"),
        ("cpu", torch.bfloat16, {"moe_intermediate_size": 11}, "moe_intermediate_size is 11"),
    ],
)
def test_what_they_cannot_serve_the_reference_does_and_says_why(device, dtype, changes, reason):
    choice = choose(device, dtype, tiny_config(**changes))
    assert choice.ops is REFERENCE
    assert choice.line().startswith(f"operations: reference (not cpu: {reason}")
    with pytest.raises(InvalidRequest, match=reason):
        choose(device, dtype, tiny_config(**changes), "cpu")


def test_one_can_be_named(monkeypatch, tmp_path):
    folder = save_folder(tmp_path / "model", tiny_model(dtype=torch.bfloat16))
    assert LLM.load(folder, ops="reference").model.ops is REFERENCE
    monkeypatch.setenv("SCUMBLE_OPS", "reference")
    assert LLM.load(folder).model.ops is REFERENCE
    assert choose("cpu", torch.bfloat16).line() == "operations: reference (asked for)"


def test_unknown_names_are_refused_with_those_there_are(monkeypatch):
    with pytest.raises(InvalidRequest, match=r"ops must be one of auto, .*reference; found 'gpu'"):
        choose("cpu", torch.bfloat16, name="gpu")
    monkeypatch.setenv("SCUMBLE_OPS", "fast")
    with pytest.raises(InvalidRequest, match="SCUMBLE_OPS must be one of"):
        choose("cpu", torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("native.processor_features = lambda: frozenset(['avx2', 'f16c'])", "this processor lacks fma"),
        (
            "native.platform.machine = lambda: 'arm64'",
            "its kernels are for x86-64 on Linux and macOS, this is arm64 on",
        ),
        ("native.shutil.which = lambda name: None", "found no C++ compiler"),
        ("native.build = lambda compiler, instructions: '/nowhere.so'", "cannot be built or loaded"),
    ],
)
def test_without_kernels_torch_serves(change, word):
    code = (
        "from scumble.ops.cpu import native\n"
        "native.processor_features = lambda: frozenset(['avx2', 'fma', 'f16c'])\n"
        f"{change}\n"
        "import torch; from scumble.ops import choose; print(choose('cpu', torch.bfloat16).line())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "operations: reference (not cpu: " in found.stdout
    assert word in found.stdout


@pytest.mark.parametrize(
    ("asked", "more", "found"),
    [("auto", (), "avx2"), ("auto", AVX512, "avx512"), ("avx2", AVX512, "avx2"), ("avx512", AVX512, "avx512")],
)
def test_the_best_instructions_of_the_processor_serve_or_the_named_ones(monkeypatch, asked, more, found):
    monkeypatch.setenv("SCUMBLE_INSTRUCTIONS", asked)
    chosen = choose_instructions(frozenset(["avx2", "fma", "f16c", *more]))
    assert isinstance(chosen, InstructionSet)
    assert chosen.name == found


@pytest.mark.parametrize(("capability", "found"), [("AVX512", "avx2"), ("AVX2", "avx2"), ("DEFAULT", None)])
def test_without_proc_cpuinfo_torch_knows_whether_there_is_avx2(monkeypatch, capability, found):
    def no_such_file(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(binary, "open", no_such_file, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    chosen = choose_instructions(binary.processor_features())
    if found is None:
        assert chosen == "this processor lacks avx2, fma, f16c"
    else:
        assert isinstance(chosen, InstructionSet)
        assert chosen.name == found


def test_instructions_that_the_processor_lacks_or_nobody_knows_are_said(monkeypatch):
    monkeypatch.setenv("SCUMBLE_INSTRUCTIONS", "avx512")
    why = choose_instructions(frozenset(["avx2", "fma", "f16c", *AVX512[:-1]]))
    assert why == "SCUMBLE_INSTRUCTIONS is avx512, and this processor lacks avx512_vnni"
    monkeypatch.setenv("SCUMBLE_INSTRUCTIONS", "sse")
    with pytest.raises(InvalidRequest, match="SCUMBLE_INSTRUCTIONS must be one of auto, avx512, avx2; found 'sse'"):
        choose_instructions(frozenset())


@pytest.mark.parametrize(
    ("kernels", "quick_in_torch", "expected"),
    [(True, False, None), (False, True, None), (False, False, torch.float32)],
)
def test_a_cpu_keeps_bfloat16_where_it_is_quick(monkeypatch, kernels, quick_in_torch, expected):
    if kernels and native.library() is None:
        pytest.skip("no compiler, or a processor without AVX2")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: quick_in_torch)
    assert choose_dtype("auto", torch.device("cpu"), "cpu" if kernels else "reference") is expected


def test_a_converted_model_gets_operations_that_fit():
    model = tiny_model(dtype=torch.bfloat16)
    model.use(choose("cpu", torch.bfloat16, model.config).ops)
    layer = cast(Layer, model.float().layers[0])
    assert layer.mlp.ops is model.ops is REFERENCE

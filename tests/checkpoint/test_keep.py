"""What is stored in few bits runs as it is: the same numbers, no rounding anew, mapped where they lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import foreign
from foreign import (
    COMPRESSED,
    Foreign,
    by_default,
    compressed_tensors,
    experts_only,
    linears,
    write_foreign,
    write_gguf,
)
from scumble.checkpoint import load, load_checkpoint
from scumble.formats.int4_weights import Int4Experts, Int4Weight
from scumble.formats.int8_weights import Int8Weight
from scumble.model import Transformer
from tiny import prompt

Write = Callable[[Path], Foreign]


def compressed(name: str) -> Write:
    form, weights = COMPRESSED[name]
    return lambda folder: write_foreign(folder, *compressed_tensors(form, **weights), by_default)


def other(
    make: Callable[..., tuple[foreign.Packer, dict[str, Any]]], quantized: Any = linears, **options: Any
) -> Write:
    return lambda folder: write_foreign(folder, *make(**options), quantized)


FOUR_BITS = {name: compressed(name) for name in COMPRESSED if "int4" in name or "nvfp4" in name} | {
    "ModelOpt NVFP4": other(foreign.modelopt_nvfp4, experts_only),
    "GPTQ": other(foreign.gptq),
    "AutoRound": other(foreign.auto_round, lambda module: linears(module) and module[21:] != "0.self_attn.q_proj"),
    "AWQ": other(foreign.awq),
    "Q4_0": lambda folder: write_gguf(folder / "tiny.gguf", "Q4_0"),
    "Q4_1": lambda folder: write_gguf(folder / "tiny.gguf", "Q4_1", stacked=True),
    "Q4_K": lambda folder: write_gguf(folder / "tiny.gguf", "Q4_K"),
}
EIGHT_BITS = {name: compressed(name) for name in ("int8 channel", "int8 tensor", "int8 packed")}
ROUNDED = {name: compressed(name) for name in ("fp8 tensor", "fp8 channel", "fp8 block", "int8 zero points")} | {
    "Q8_0": lambda folder: write_gguf(folder / "tiny.gguf", "Q8_0"),
    "Q6_K": lambda folder: write_gguf(folder / "tiny.gguf", "Q6_K"),
    "GPTQ, ordered": other(foreign.gptq, ordered=True),
}


def logits(model: Transformer) -> torch.Tensor:
    cache = model.new_cache()
    model.encode(torch.tensor(prompt(12)), cache)
    return model.denoise_logits(torch.tensor(prompt(8, seed=5)), cache)


def apart(folder: Path) -> float:
    """Mean divergence of what runs as it is stored from the dequantized model, in nats."""
    kept, plain = (logits(load_checkpoint(folder, dtype)).log_softmax(-1) for dtype in (None, torch.float32))
    return float((plain.exp() * (plain - kept)).sum(-1).mean())


@pytest.mark.parametrize("name", FOUR_BITS)
def test_four_bits_stay_the_same_numbers(tmp_path, name):
    written = FOUR_BITS[name](tmp_path)
    model = load_checkpoint(written.folder)
    compared = 0
    for path, module in model.named_modules():
        key = path if written.folder.suffix == ".gguf" else f"model.decoder.{path}"
        if isinstance(module, Int4Weight):
            torch.testing.assert_close(module.matrix.numbers(), written.meant[f"{key}.weight"], rtol=1e-5, atol=1e-6)
            compared += 1
        if isinstance(module, Int4Experts):
            matrices = module.matrices
            up = [torch.cat((g.numbers(), u.numbers())) for g, u in zip(matrices.gate, matrices.up, strict=True)]
            torch.testing.assert_close(torch.stack(up), written.meant[f"{key}.gate_up_proj"], rtol=1e-5, atol=1e-6)
            down = torch.stack([one.numbers() for one in matrices.down])
            torch.testing.assert_close(down, written.meant[f"{key}.down_proj"], rtol=1e-5, atol=1e-6)
            compared += 1
    assert compared >= 2
    assert model.number_format == "int4"
    assert apart(written.folder) < 0.1  # activations in int8; random weights of spread logits are the hard case


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_eight_bits_stay_the_same_numbers(tmp_path, name):
    model = load_checkpoint(EIGHT_BITS[name](tmp_path).folder)
    assert model.load_report is not None
    assert all("int8, the same numbers" in how for how in model.load_report.runs_as)
    assert any(isinstance(module, Int8Weight) for module in model.modules())
    assert model.number_format == "int8"
    assert apart(tmp_path) < 0.1


@pytest.mark.parametrize("name", ROUNDED)
def test_what_has_no_product_of_its_own_is_rounded_and_said(tmp_path, name):
    written = ROUNDED[name](tmp_path)
    model = load_checkpoint(written.folder)
    assert model.load_report is not None
    assert any("int8, rounded anew" in how for how in model.load_report.runs_as)
    assert apart(written.folder) < 0.1


@pytest.mark.parametrize("form", ["int4", "int8"])
def test_a_format_can_still_be_asked_for(tmp_path, form):
    folder = compressed("int4 group 32")(tmp_path).folder
    model = load_checkpoint(folder, form)
    assert model.number_format == form
    assert logits(model).isfinite().all()


def test_packed_weights_are_mapped_not_copied(tmp_path):
    model = load_checkpoint(compressed("int4 group 32")(tmp_path).folder)
    maps = Path("/proc/self/maps").read_text()
    ranges = [line.split()[0].split("-") for line in maps.splitlines() if str(tmp_path) in line]
    address = next(m for m in model.modules() if isinstance(m, Int4Weight)).matrix.packed.data_ptr()
    assert any(int(begin, 16) <= address < int(end, 16) for begin, end in ranges)


def test_kept_weights_are_not_read_a_second_time(tmp_path, monkeypatch):
    folder = compressed("int4 group 32")(tmp_path).folder
    read: list[str] = []
    plain = load._read
    monkeypatch.setattr(load, "_read", lambda own, *rest: (read.extend(own), plain(own, *rest))[1])
    load_checkpoint(folder)
    assert read
    assert not [name for name in read if "_proj" in name and "self_conditioning" not in name and "router" not in name]

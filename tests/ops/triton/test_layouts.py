"""Device formats hold the numbers that they were made from: bit for bit where a format is repacked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scumble.formats.int4 import Int4Matrix
from scumble.ops.triton import layouts, packed, repacking, rounding


def stored(size: int, group: int, **changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """Random numbers of 5 rows as formats/int4.py holds them."""
    groups = -(-size // group)
    packed = torch.randint(0, 256, (5, groups * group // 2), dtype=torch.uint8)
    shape = torch.tensor([size, group, int("factor" in changes)])
    return {"packed": packed, "scale": torch.rand(5, groups).bfloat16(), "shape": shape, **changes}


@pytest.mark.parametrize("size", [32, 96, 128, 704])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("kind", ["int4", "zero"])
def test_repacking_four_bits_changes_no_number(size: int, group: int, kind: str) -> None:
    """A checkpoint's numbers, repacked for the tensor core, against the CPU's way of reading them."""
    zero = {"zero": torch.randint(0, 16, (5, -(-size // group))).float()} if kind == "zero" else {}
    state = stored(size, group, **zero)
    layout = packed.laid_out("int4", state, native=False)
    assert isinstance(layout, layouts.Int4)
    assert layout.kind == kind
    assert layout.width % layouts.BLOCK == 0
    assert layout.scale.shape == (layout.width // 128, 5, 4)
    assert torch.equal(layout.dequantized(), Int4Matrix.of(state).numbers().bfloat16())


@pytest.mark.parametrize("native", [False, True])
def test_repacking_nvfp4_changes_no_number(native: bool) -> None:
    """For any card in words; where it multiplies such numbers by itself, as they lie."""
    scale = torch.rand(5, 6).to(torch.float8_e4m3fn)
    state = stored(96, 16, scale=scale, factor=torch.tensor([0.3]))
    layout = packed.laid_out("int4", state, native)
    assert layout.kind == ("nvfp4" if native else "e2m1")
    torch.testing.assert_close(layout.dequantized(), Int4Matrix.of(state).numbers(), rtol=1e-6, atol=0)


def test_groups_that_no_kernel_takes_are_refused() -> None:
    with pytest.raises(ValueError, match="groups of 24 numbers are no multiples of 32"):
        packed.laid_out("int4", stored(96, 24), native=False)


def test_a_nibble_position_of_a_block_is_a_run_of_neighbours() -> None:
    nibbles = torch.randint(0, 16, (1, 128), dtype=torch.uint8)
    words = repacking.words(nibbles[:, 0::2] | nibbles[:, 1::2] << 4, 128)[0]
    for i in range(8):
        assert torch.equal(((words >> (4 * i)) & 15).to(torch.uint8), nibbles[0, 16 * i : 16 * i + 16])


def test_numbers_beyond_the_matrix_are_zero() -> None:
    whole = replace(rounding.to_int4(torch.randn(4, 96)), size=128)
    assert torch.equal(whole.dequantized()[:, 96:], torch.zeros(4, 32).bfloat16())


def test_rounding_errors_are_those_of_the_formats() -> None:
    weight = torch.randn(6, 64, 160)

    def error(approximation: torch.Tensor) -> float:
        return float((approximation.float() - weight).norm() / weight.norm())

    assert error(rounding.to_fp8(weight).dequantized()) < 0.03
    assert error(rounding.to_int8(weight).dequantized()) < 0.01
    assert error(rounding.to_int4(weight).dequantized()) < 0.10
    assert error(rounding.to_nvfp4(weight).dequantized()) < 0.11


def test_zeros_stay_zeros() -> None:
    weight = torch.zeros(4, 64)
    for make in rounding.ROUNDED.values():
        assert torch.equal(make(weight).dequantized().float(), weight)


def test_the_nearest_e2m1_value_is_the_nearest_and_ties_are_even() -> None:
    x = torch.linspace(-7, 7, 2001)
    values = layouts.values(rounding.nearest_e2m1(x))
    nearest = (x[:, None] - torch.tensor(layouts.E2M1)).abs().min(-1).values
    torch.testing.assert_close((x - values).abs(), nearest)
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert layouts.values(rounding.nearest_e2m1(ties)).tolist() == [0, 1, 1, 2, 2, 4, 4]

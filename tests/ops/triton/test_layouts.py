"""Device formats hold the numbers that they were made from: bit for bit where a format is repacked."""

from __future__ import annotations

import pytest
import torch

from scumble.ops.triton import layouts


@pytest.mark.parametrize("size", [32, 96, 128, 704])
def test_repacking_int4_changes_no_number(size: int) -> None:
    """The CPU's format, repacked for the tensor core, against its own way of unpacking it."""
    groups = size // 32
    packed = torch.randint(0, 256, (3, 5, groups, 16), dtype=torch.uint8)
    scale = torch.randn(3, 5, groups).bfloat16()
    nibbles = torch.cat((packed & 15, packed >> 4), dim=-1).float() - 8
    numbers = (nibbles * scale.float()[..., None]).bfloat16().flatten(-2)
    device = layouts.int4_from_packed(packed, scale, size)
    assert torch.equal(device.dequantized(), numbers)
    assert device.width % layouts.BLOCK == 0
    assert device.scale.shape == (3, device.width // 32, 5)


def test_a_nibble_position_of_a_block_is_a_run_of_neighbours() -> None:
    nibbles = torch.randint(0, 16, (1, 128), dtype=torch.uint8)
    groups = nibbles.view(1, 4, 32)
    packed = groups[..., :16] | groups[..., 16:] << 4
    words = layouts.int4_from_packed(packed, torch.ones(1, 4).bfloat16(), 128).words[0]
    for i in range(8):
        assert torch.equal(((words >> (4 * i)) & 15).to(torch.uint8), nibbles[0, 16 * i : 16 * i + 16])


def test_numbers_beyond_the_matrix_are_zero() -> None:
    weight = layouts.to_int4(torch.randn(4, 96))
    assert torch.equal(
        layouts.Int4(weight.words, weight.scale, 128).dequantized()[:, 96:], torch.zeros(4, 32).bfloat16()
    )


def test_rounding_errors_are_those_of_the_formats() -> None:
    weight = torch.randn(6, 64, 160)

    def error(approximation: torch.Tensor) -> float:
        return float((approximation.float() - weight).norm() / weight.norm())

    assert error(layouts.to_fp8(weight).dequantized()) < 0.03
    assert error(layouts.to_int4(weight).dequantized()) < 0.10
    assert error(layouts.to_nvfp4(weight).dequantized()) < 0.11


def test_zeros_stay_zeros() -> None:
    weight = torch.zeros(4, 64)
    for make in (layouts.to_fp8, layouts.to_int4, layouts.to_nvfp4):
        assert torch.equal(make(weight).dequantized().float(), weight)


def test_the_nearest_e2m1_value_is_the_nearest_and_ties_are_even() -> None:
    x = torch.linspace(-7, 7, 2001)
    values = layouts.E2M1[layouts.nearest_e2m1(x).long()]
    nearest = (x[:, None] - layouts.E2M1).abs().min(-1).values
    torch.testing.assert_close((x - values).abs(), nearest)
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert layouts.E2M1[layouts.nearest_e2m1(ties).long()].tolist() == [0, 1, 1, 2, 2, 4, 4]

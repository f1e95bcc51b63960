"""Dense and expert products in every format, against plain torch on the same (dequantized) numbers.

Outputs are poisoned by what memory holds; shapes are no multiples of tiles, so that every mask is at work.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scumble.ops.triton import activations, experts, grouping, layouts, linear, packed, repacking, rounding
from scumble.ops.triton.launch import tiles_for

pytestmark = pytest.mark.usefixtures("guarded")

FORMATS = ("plain", "fp8", "int8", "int4", "zero", "e2m1", "nvfp4")
# Results are bfloat16, and so are both operands of int4; fp8 operands are the same numbers on both sides.
TOLERANCE = {torch.bfloat16: 5e-3, torch.float32: 2e-5}


def made(weight: torch.Tensor, kind: str, dtype: torch.dtype) -> layouts.Layout:
    """A weight whose numbers are stored in one of the ways that kernels know."""
    match kind:
        case "plain":
            return layouts.Plain(weight.to(dtype))
        case "zero":
            four = rounding.to_int4(weight)
            zero = torch.randint(0, 16, four.scale.shape, device=weight.device).float()
            return replace(four, scale=four.scale.float(), zero=zero)
        case "e2m1":
            numbers, scale, factor = rounding.nvfp4_rows(weight)
            return repacking.from_nibbles(numbers, scale, weight.shape[-1], 16, factor=factor, e2m1=True)
        case _:
            return rounding.ROUNDED[kind](weight)


def numbers_of(x: activations.Activations, format: str) -> torch.Tensor:
    """The numbers that a product of this format sees, float32."""
    if format == "nvfp4":
        return layouts.e2m1_numbers(x.values, x.groups) * x.factor[:, None]
    return x.values.float() * x.factor[:, None] if format in ("fp8", "int8") else x.values.float()


def relative(one: torch.Tensor, two: torch.Tensor) -> float:
    assert not one.isnan().any()
    return float((one.double() - two.double()).norm() / two.double().norm())


@pytest.mark.parametrize("kind", FORMATS[:-1])
@pytest.mark.parametrize("step", [False, True])
def test_gated_products_of_two_matrices(kind: str, step: bool, dtype: torch.dtype, device: torch.device) -> None:
    x = torch.randn(21, 160, device=device).to(dtype)
    gate, up = (made(torch.randn(40, 160, device=device) / 12, kind, dtype) for _ in range(2))
    rounded = activations.for_format(x, gate.format)
    out = linear.gated_linear(rounded, gate, up, step=step)
    matrices = gate.dequantized().float(), up.dequantized().float()
    reference = linear.gated_linear_reference(numbers_of(rounded, gate.format), *matrices)
    assert relative(out, reference) < TOLERANCE[dtype]


@pytest.mark.parametrize("kind", FORMATS[:-1])
@pytest.mark.parametrize("step", [False, True])
def test_products_of_several_matrices(kind: str, step: bool, dtype: torch.dtype, device: torch.device) -> None:
    """One, two and three in a launch, whose sizes are no multiples of tiles: the same bits as each by itself."""
    x = torch.randn(21, 160, device=device).to(dtype)
    weights = [made(torch.randn(size, 160, device=device) / 12, kind, dtype) for size in (80, 34, 50)]
    rounded = activations.for_format(x, weights[0].format)
    numbers = numbers_of(rounded, weights[0].format)
    apart = [linear.linear(rounded, weight, step=step) for weight in weights]
    for one, weight in zip(apart, weights, strict=True):
        assert relative(one, linear.linear_reference(numbers, weight.dequantized().float())) < TOLERANCE[dtype]
    for count in (2, 3):
        assert torch.equal(linear.linear(rounded, *weights[:count], step=step), torch.cat(apart[:count], dim=-1))


@pytest.mark.parametrize("size", [256, 96, 40])
@pytest.mark.parametrize("kind", ["int4", "zero", "e2m1"])
def test_four_bits_become_the_very_numbers(kind: str, size: int, dtype: torch.dtype, device: torch.device) -> None:
    """A token that is 1 at one place sees one column of the weight; sizes that do not fill their last block too."""
    if kind == "e2m1" and size % 16:
        pytest.skip("its groups are whole")
    weight = made(torch.randn(34, size, device=device) * 5, kind, torch.bfloat16)
    out = linear.linear(activations.for_format(torch.eye(size, device=device).to(dtype), "int4"), weight)
    assert torch.equal(out, weight.dequantized().to(dtype).T)


@pytest.mark.parametrize("kind", FORMATS)
def test_experts(kind: str, dtype: torch.dtype, device: torch.device) -> None:
    tokens, choices, count, size, width = 24, 2, 5, 96, 80
    x = torch.randn(tokens, size, device=device).to(dtype)
    up = made(torch.randn(count, 2 * width, size, device=device) / 10, kind, dtype)
    down = made(torch.randn(count, size, width, device=device) / 9, kind, dtype)
    format = up.format
    chosen = torch.rand(tokens, count, device=device).topk(choices).indices
    weights = torch.rand(tokens, choices, device=device)
    rounded = activations.for_format(x, format)
    groups = grouping.group(chosen.int(), count, format)
    out = experts.experts(rounded, weights, groups, up, down)
    reference = experts.experts_reference(
        numbers_of(rounded, format), weights, chosen, up.dequantized().float(), down.dequantized().float()
    )
    # fp8, int8 and nvfp4 round the middle of the MLP too, which the reference here does not
    assert relative(out, reference) < {"fp8": 4e-2, "int8": 2e-2, "nvfp4": 0.15}.get(format, 2 * TOLERANCE[dtype])


@pytest.mark.parametrize("crowd", [False, True], ids=["spread", "all choose the same"])
def test_grouping_is_a_stable_sort_cut_into_tiles(crowd: bool, device: torch.device) -> None:
    count = 6
    chosen = torch.randint(0, count, (1300, 2), dtype=torch.int32, device=device)
    if crowd:
        chosen[:] = 3
    ours = grouping.group(chosen, count, "plain")
    reference = grouping.group_reference(chosen, count, tiles_for("up plain", device)["BM"])
    assert torch.equal(ours.order, reference.order)
    assert torch.equal(ours.tile_count, reference.tile_count)
    busy = reference.tile_count > 0
    assert torch.equal(ours.tile_expert[busy], reference.tile_expert[busy])
    assert torch.equal(ours.tile_first[busy], reference.tile_first[busy])


@pytest.mark.parametrize("format", ["fp8", "int8", "nvfp4"])
def test_rounding_activations_is_torchs(format: str, device: torch.device) -> None:
    x = torch.randn(9, 112, device=device).bfloat16()
    x[4] = 0
    x[5, 16:32] = 0
    ours, reference = activations.for_format(x, format), activations.for_format_reference(x, format)
    assert torch.equal(ours.factor, reference.factor)
    assert torch.equal(numbers_of(ours, format), numbers_of(reference, format))


def test_what_several_matrices_take_is_rounded_once_and_never_stale(device: torch.device) -> None:
    rounded, x = packed.Rounded(), torch.randn(3, 32, device=device)
    first = rounded(x, "fp8")
    assert rounded(x, "fp8") is first
    assert rounded(x, "int8") is not first
    first = rounded(x, "fp8")
    x.mul_(2)
    assert torch.equal(rounded(x, "fp8").factor, 2 * first.factor)


@pytest.mark.parametrize("format", ["fp8", "int8", "nvfp4"])
def test_a_row_with_no_number_has_no_result(format: str, device: torch.device) -> None:
    """Rounded away, it would be hidden from the engine, which looks for it: a maximum passes over what is no number."""
    x = torch.randn(5, 64, device=device).bfloat16()
    x[1, 3], x[2, 4] = float("nan"), float("inf")
    rounded = activations.for_format(x, format)
    assert rounded.factor.isnan().tolist() == [False, True, True, False, False]
    if format != "nvfp4":  # of experts alone
        out = linear.linear(rounded, made(torch.randn(16, 64, device=device), format, torch.bfloat16))
        assert out.isnan().all(-1).tolist() == [False, True, True, False, False]


@pytest.mark.parametrize("format", ["plain", "fp8", "int8", "int4"])
def test_a_rows_bits_do_not_depend_on_the_other_rows(format: str, device: torch.device) -> None:
    """In the interpreter this is a weak check (numpy multiplies); on a card it is the claim itself."""
    x = torch.randn(40, 96, device=device).bfloat16()
    weight = made(torch.randn(64, 96, device=device), format, torch.bfloat16)
    together = linear.linear(activations.for_format(x, format), weight)
    alone = linear.linear(activations.for_format(x[7:9].contiguous(), format), weight)
    assert torch.equal(together[7:9], alone)

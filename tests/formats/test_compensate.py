"""Rounding by inputs: on the grid, better for those inputs than to the nearest; to the nearest where none are known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble.formats import int4
from scumble.formats.compensate import DAMPING, Grid, Inputs, compensated

FOUR = Grid(-8, 7, 32)
EIGHT = Grid(-127, 127, None)


def inputs_like(seed: int, columns: int, rank: int, count: int = 512) -> torch.Tensor:
    """count inputs [count, columns] that mostly lie in `rank` directions: what layers are given is like that."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(count, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)
    return few + 0.1 * torch.randn(count, columns, generator=generator)


def meant(numbers: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    return numbers.float() * steps.float().repeat_interleave(numbers.shape[1] // steps.shape[1], dim=1)


def off(weight: torch.Tensor, rounded: torch.Tensor, x: torch.Tensor) -> float:
    return float(((weight - rounded) @ x.T).square().sum())


@given(seed=st.integers(0, 2**20), rank=st.integers(1, 24), grid=st.sampled_from([FOUR, EIGHT]))
@settings(deadline=None, max_examples=20)
def test_products_with_such_inputs_come_nearer(seed, rank, grid):
    x = inputs_like(seed, 64, rank)
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(seed))
    plain = off(weight, meant(*compensated(weight, None, grid)), x)
    assert off(weight, meant(*compensated(weight, Inputs.of(x.T @ x), grid)), x) < 0.7 * plain


@pytest.mark.parametrize("grid", [FOUR, EIGHT])
@pytest.mark.parametrize("columns", [64, 160, 192])
def test_columns_are_rounded_as_the_paper_s_inverse_matrix_says(grid, columns):
    """Its rule in float64: round a column, and take the error, by the inverse's factor, from the columns behind it.
    What lies halfway between two numbers may go to either, and others then differ in turn: few."""
    x = inputs_like(5, columns, 12)
    weight = torch.randn(24, columns, generator=torch.Generator().manual_seed(6))
    numbers, steps = compensated(weight, Inputs.of(x.T @ x), grid)
    gram = (x.T @ x).double()
    order = gram.diagonal().argsort(descending=True, stable=True)
    damped = gram[order][:, order] + DAMPING * gram.diagonal().mean() * torch.eye(columns)
    ahead = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    left = weight.double()[:, order]
    wide = steps.double().repeat_interleave(columns // steps.shape[1], dim=1)[:, order]
    expected = torch.empty_like(left)
    for at in range(columns):
        expected[:, at] = (left[:, at] / wide[:, at]).round().clamp(grid.lowest, grid.highest)
        error = (left[:, at] - expected[:, at] * wide[:, at]) / ahead[at, at]
        left[:, at + 1 :] -= error[:, None] * ahead[at, at + 1 :]
    assert (numbers[:, order].double() == expected).float().mean() > 0.99


@pytest.mark.parametrize("grid", [FOUR, EIGHT])
def test_a_weight_in_slabs_is_rounded_as_at_once(grid, monkeypatch):
    x, weight = inputs_like(7, 64, 6), torch.randn(40, 64)
    whole = compensated(weight, Inputs.of(x.T @ x), grid)
    monkeypatch.setattr("scumble.formats.compensate.SLAB", 7 * 64)
    numbers, steps = compensated(weight, Inputs.of(x.T @ x), grid)
    assert torch.equal(steps, whole[1])
    assert (numbers == whole[0]).float().mean() > 0.99  # products of other sizes round differently


@pytest.mark.parametrize("grid", [FOUR, EIGHT])
def test_numbers_lie_on_the_grid(grid):
    x = inputs_like(1, 96, 4)
    numbers, steps = compensated(torch.randn(8, 96), Inputs.of(x.T @ x), grid)
    assert numbers.dtype is torch.int8
    assert steps.shape == (8, 3 if grid.group else 1)
    assert grid.lowest <= int(numbers.min()) <= int(numbers.max()) <= grid.highest


def test_without_inputs_it_rounds_as_plain_rounding_does():
    weight = torch.randn(8, 96)
    numbers, steps = compensated(weight, None, FOUR)
    plain = int4.quantize(weight)
    assert torch.equal(steps, plain.scale)
    assert torch.equal(meant(numbers, steps), plain.numbers())


def test_columns_that_no_input_has_are_rounded_to_the_nearest():
    x = inputs_like(2, 64, 8)
    x[:, 32:] = 0
    weight = torch.randn(8, 64)
    numbers, steps = compensated(weight, Inputs.of(x.T @ x), FOUR)
    dead = meant(numbers, steps)[:, 32:]
    assert torch.equal(
        dead, meant((weight / steps.float().repeat_interleave(32, 1)).round().clamp(-8, 7), steps)[:, 32:]
    )


def test_fewer_inputs_than_columns_are_enough():
    x = inputs_like(3, 128, 2, count=3)
    weight = torch.randn(8, 128)
    rounded = meant(*compensated(weight, Inputs.of(x.T @ x), FOUR))
    assert float((weight - rounded).norm() / weight.norm()) < 0.3  # what no input says stays near


@pytest.mark.parametrize("gram", [torch.zeros(4, 4), torch.full((4, 4), float("nan"))])
def test_inputs_that_say_nothing(gram):
    assert Inputs.of(gram) is None


def test_rows_of_zeros_stay_zeros():
    x = inputs_like(4, 64, 8)
    numbers, steps = compensated(torch.zeros(4, 64), Inputs.of(x.T @ x), FOUR)
    assert not meant(numbers, steps).any()

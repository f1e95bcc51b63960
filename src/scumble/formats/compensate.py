"""Rounding that knows what a weight's inputs look like: GPTQ's error compensation (Frantar et al., arXiv 2210.17323).

Rounding a weight w [rows, k] to the nearest makes Σ |w - ŵ|² small. What matters is Σ_x |(w - ŵ)·x|² over inputs x,
which is tr((w - ŵ) G (w - ŵ)ᵀ) with their Gram matrix G = Σ x·xᵀ. Columns are rounded one after another, those with the
most input first; the error of each is made up for by the columns still to come, as far as their inputs go together.

Scales are fixed before that, of columns as they lie, so the result has the layout of plain rounding: no order of
columns has to be stored. Each is the best of a few by the same measure, as if columns were independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DAMPING = 0.01  # of the mean input, added to every column's: directions that no input took keep the weight as it is
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7)  # a smaller step than the largest number needs: it is cut, others gain
BLOCK = 128  # columns whose errors are handed on together


@dataclass(frozen=True)
class Grid:
    """Whole numbers lowest … highest times a step; `group` columns of a row share one, or all where it is None."""

    lowest: int
    highest: int
    group: int | None

    def width(self, columns: int) -> int:
        return columns if self.group is None else self.group


@dataclass(frozen=True)
class Inputs:
    """What the solver needs of a Gram matrix [k, k]: made once for all weights with the same inputs.

    size [k]: Σ x². order [k]: columns, most input first. ahead [k, k]: upper triangular, aheadᵀ·ahead = (G + damping)⁻¹
    in that order.
    """

    size: Tensor
    order: Tensor
    ahead: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, gram: Tensor) -> Inputs | None:
        """None where the matrix is zero or holds numbers that are not finite: then there is nothing to go by."""
        size = gram.diagonal().clone()
        mean = float(size.mean())
        if not 0 < mean < float("inf"):
            return None
        order = size.argsort(descending=True, stable=True)
        ordered = gram[order][:, order]
        for damping in (DAMPING, 10 * DAMPING, 1.0):
            raised = ordered.clone()
            raised.diagonal().add_(damping * mean)
            lower, failed = torch.linalg.cholesky_ex(raised)
            if failed:
                continue
            ahead, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed and bool(torch.isfinite(ahead).all()):
                return cls(size, order, ahead)
        return None


@torch.no_grad()
def compensated(weight: Tensor, inputs: Inputs | None, grid: Grid) -> tuple[Tensor, Tensor]:
    """weight [rows, k] -> whole numbers int8 [rows, k], steps bfloat16 [rows, groups]. inputs None: to the nearest."""
    weight = weight.float()
    size = torch.ones(weight.shape[1]) if inputs is None else inputs.size
    steps = _steps(weight, size, grid, SHRINKS if inputs is not None else (1.0,))
    wide = torch.where(steps == 0, 1.0, steps.float()).repeat_interleave(grid.width(weight.shape[1]), dim=1)
    if inputs is None:
        return (weight / wide).round_().clamp_(grid.lowest, grid.highest).to(torch.int8), steps
    order = inputs.order
    numbers = torch.empty(weight.shape, dtype=torch.int8)
    numbers[:, order] = _one_after_another(weight[:, order], wide[:, order], inputs.ahead, grid)
    return numbers, steps


def _steps(weight: Tensor, size: Tensor, grid: Grid, shrinks: tuple[float, ...]) -> Tensor:
    """Of every group the step with the least Σ size · (w - ŵ)². The number of largest magnitude becomes `lowest` where
    the grid is longer on that side."""
    groups = weight.unflatten(1, (-1, grid.width(weight.shape[1])))
    heed = size.view(-1, groups.shape[2])
    extreme = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    longest = extreme / grid.lowest if -grid.lowest > grid.highest else extreme.abs() / grid.highest
    best, least = torch.zeros_like(longest), torch.full_like(longest, float("inf"))
    for shrink in shrinks:
        step = (longest * shrink).bfloat16().float()
        safe = torch.where(step == 0, 1.0, step)
        off = (groups / safe).round_().clamp_(grid.lowest, grid.highest).mul_(safe).sub_(groups).square_()
        error = (off * heed).sum(2, keepdim=True)
        better = error < least
        best, least = torch.where(better, step, best), torch.where(better, error, least)
    return best[..., 0].bfloat16()


def _one_after_another(weight: Tensor, steps: Tensor, ahead: Tensor, grid: Grid) -> Tensor:
    """Columns in order; weight [rows, k] is used up."""
    columns = weight.T.contiguous()  # a column is a row here: contiguous
    step, numbers = steps.T.contiguous(), torch.empty_like(columns)
    for begin in range(0, len(columns), BLOCK):
        end = min(begin + BLOCK, len(columns))
        errors = torch.empty(end - begin, columns.shape[1])
        for at in range(begin, end):
            column = columns[at]
            torch.div(column, step[at], out=numbers[at])
            numbers[at].round_().clamp_(grid.lowest, grid.highest)
            error = (column - numbers[at] * step[at]).div_(ahead[at, at])
            columns[at + 1 : end].addr_(ahead[at, at + 1 : end], error, alpha=-1)
            errors[at - begin] = error
        columns[end:].addmm_(ahead[begin:end, end:].T, errors, alpha=-1)
    return numbers.T.to(torch.int8)

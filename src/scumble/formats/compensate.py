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
BLOCK = 64  # columns that hear of the errors behind them together
SLAB = 2**23  # numbers of a weight that are rounded at a time, in whole rows: each is rounded by itself


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

    size [k]: Σ x². order [k]: columns, least input first. factor [k, k]: lower triangular, factor·factorᵀ = G + damping
    in that order.
    """

    size: Tensor
    order: Tensor
    factor: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, gram: Tensor) -> Inputs | None:
        """None where the matrix is zero or holds numbers that are not finite: then there is nothing to go by.

        Beside the Gram matrix, which may have a quarter of a gigabyte, there is one matrix of its size.
        """
        size = gram.diagonal().clone()
        mean = float(size.mean())
        if not 0 < mean < float("inf"):
            return None
        order = size.argsort(descending=True, stable=True).flip(0)
        # Column-major, as LAPACK has it, so that it is factored where it lies.
        factor, failed = torch.empty_like(gram).T, torch.empty((), dtype=torch.int32)
        for damping in (DAMPING, 10 * DAMPING, 1.0):
            for rows, wanted in zip(factor.T.split(BLOCK), order.split(BLOCK), strict=True):
                torch.index_select(gram[wanted], 1, order, out=rows)
            factor.diagonal().add_(damping * mean)
            torch.linalg.cholesky_ex(factor, out=(factor, failed))
            if not failed and bool(torch.isfinite(factor.diagonal()).all()):
                return cls(size, order, factor)
        return None


@torch.no_grad()
def compensated(weight: Tensor, inputs: Inputs | None, grid: Grid) -> tuple[Tensor, Tensor]:
    """weight [rows, k] -> whole numbers int8 [rows, k], steps bfloat16 [rows, groups]. inputs None: to the nearest."""
    slabs = [_slab(part.float(), inputs, grid) for part in weight.split(max(1, SLAB // weight.shape[1]))]
    numbers, steps = zip(*slabs, strict=True)
    return torch.cat(numbers), torch.cat(steps)


def _slab(weight: Tensor, inputs: Inputs | None, grid: Grid) -> tuple[Tensor, Tensor]:
    size = torch.ones(weight.shape[1]) if inputs is None else inputs.size
    steps = _steps(weight, size, grid, SHRINKS if inputs is not None else (1.0,))
    wide = torch.where(steps == 0, 1.0, steps.float()).repeat_interleave(grid.width(weight.shape[1]), dim=1)
    if inputs is None:
        return (weight / wide).round_().clamp_(grid.lowest, grid.highest).to(torch.int8), steps
    order = inputs.order
    numbers = torch.empty(weight.shape, dtype=torch.int8)
    numbers[:, order] = _one_after_another(weight[:, order], wide[:, order], inputs.factor, grid)
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


def _one_after_another(weight: Tensor, steps: Tensor, factor: Tensor, grid: Grid) -> Tensor:
    """Columns from the last to the first.

    With F the factor and e = w - ŵ, what matters is Σ_j (F_jj e_j + Σ_{i>j} F_ij e_i)², whose term j hears of columns
    from j on only: it is least where w_j + Σ_{i>j} F_ij e_i / F_jj is rounded to the nearest. That is GPTQ's rule
    without its inverse matrix (Chen et al., arXiv 2507.18553).
    """
    columns, step = weight.T.contiguous(), steps.T.contiguous()  # a column is a row here: contiguous
    numbers, errors = torch.empty_like(columns), torch.empty_like(columns)
    for begin in reversed(range(0, len(columns), BLOCK)):
        end = min(begin + BLOCK, len(columns))
        heard = factor[end:, begin:end].T @ errors[end:]
        for at in range(end - 1, begin - 1, -1):
            behind = factor[at + 1 : end, at] @ errors[at + 1 : end]
            target = behind.add_(heard[at - begin]).div_(factor[at, at]).add_(columns[at])
            torch.div(target, step[at], out=numbers[at]).round_().clamp_(grid.lowest, grid.highest)
            torch.addcmul(columns[at], numbers[at], step[at], value=-1, out=errors[at])
    return numbers.T.to(torch.int8)

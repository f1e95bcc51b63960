"""Dense products: x [M, K] · weightᵀ -> [M, N]. What takes the same x shares a launch: the projections of attention
side by side, and the gated pair of an MLP's first half.

A program makes BN outputs of BM tokens; programs beside one another make the same outputs of other tokens, so that a
weight comes from memory once. BM is the same whatever M is, except that a pass in which every row has a
single token (autoregressive steps) uses the small tiles of "step": its rows are compared with other steps only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from scumble.ops.triton.activations import Activations
from scumble.ops.triton.launch import blocks, launch, tiles_for
from scumble.ops.triton.layouts import Layout
from scumble.ops.triton.products import gated, weighted_sum

BESIDE = 3  # matrices a launch at most


@triton.jit(do_not_specialize=["M"])
def _linear(
    x, x_groups, x_factor, weight, groups, factor, weight_2, groups_2, factor_2, weight_3, groups_3, factor_3, out,
    M, N, N_2, N_3, WIDTH, K: tl.constexpr, COUNT: tl.constexpr, FORMAT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """COUNT matrices [N, K], [N_2, K], [N_3, K] of one format; out [M, WIDTH], WIDTH = N + N_2 + N_3. Each tile lies in
    one of them."""
    m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    live = m < M
    tile = tl.program_id(1)
    column = 0
    if COUNT > 1:
        second = tl.cdiv(N, BN)
        third = second + tl.cdiv(N_2, BN)
        in_2, in_3 = tile >= second, tile >= third
        weight = tl.where(in_3, weight_3, tl.where(in_2, weight_2, weight))
        groups = tl.where(in_3, groups_3, tl.where(in_2, groups_2, groups))
        factor = tl.where(in_3, factor_3, tl.where(in_2, factor_2, factor))
        column = tl.where(in_3, N + N_2, tl.where(in_2, N, 0))
        tile -= tl.where(in_3, third, tl.where(in_2, second, 0))
        N = tl.where(in_3, N_3, tl.where(in_2, N_2, N))
    n = tile * BN + tl.arange(0, BN)
    total = weighted_sum(x, x_groups, x_factor, m, live, weight, groups, factor, 0, n, n < N, N, K, FORMAT, BM, BN, BK)
    at = out + m[None, :] * WIDTH + (column + n)[:, None]
    tl.store(at, total.to(out.dtype.element_ty), mask=live[None, :] & (n < N)[:, None])


@triton.jit(do_not_specialize=["M"])
def _gated(
    x, x_groups, x_factor, weight, groups, factor, up, up_groups, up_factor, out, M, N,
    K: tl.constexpr, FORMAT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Matrices gate and up [N, K] of one format; out [M, N]."""
    m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    live = m < M
    r = tl.arange(0, 2 * BN)
    rows = tl.program_id(1) * BN + r % BN
    is_up = r >= BN
    both = weighted_sum(
        x, x_groups, x_factor, m, live, tl.where(is_up, up, weight), tl.where(is_up, up_groups, groups),
        tl.where(is_up, up_factor, factor), 0, rows, rows < N, N, K, FORMAT, BM, 2 * BN, BK,
    )  # fmt: skip
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    total = gated(both, out, BM, BN).to(out.dtype.element_ty)
    tl.store(out + m[None, :] * N + n[:, None], total, mask=live[None, :] & (n < N)[:, None])


def linear(x: Activations, *weights: Layout, step: bool = False) -> Tensor:
    """x [M, K] in the weights' activation format; one to three matrices [N, K] -> their products [M, ΣN], in the
    model's dtype, side by side. step: see above."""
    first = weights[0]
    name = f"{'step' if step else 'linear'} {first.format}"
    sizes = [weight.outputs for weight in weights]
    out = torch.empty(x.rows, sum(sizes), dtype=x.dtype, device=x.values.device)
    tiles = tiles_for(name, out.device)
    several = [*weights, *[first] * (BESIDE - len(weights))]
    numbers = [argument for weight in several for argument in weight.arguments]
    sizes += [0] * (BESIDE - len(sizes))
    grid = blocks(x.rows, tiles["BM"]), sum(blocks(size, tiles["BN"]) for size in sizes)
    arguments = (*x.arguments, *numbers, out, x.rows, *sizes, sum(sizes))
    launch(name, _linear, grid, arguments, K=first.inputs, COUNT=len(weights), FORMAT=first.kind)
    return out


def gated_linear(x: Activations, gate: Layout, up: Layout, step: bool = False) -> Tensor:
    """gelu_tanh(x · gateᵀ) · (x · upᵀ) [M, N] of matrices [N, K] in one format."""
    name = f"{'step' if step else 'linear'} gated {gate.format}"
    count, size = x.rows, gate.outputs
    out = torch.empty(count, size, dtype=x.dtype, device=x.values.device)
    tiles = tiles_for(name, out.device)
    grid = blocks(count, tiles["BM"]), blocks(size, tiles["BN"])
    arguments = (*x.arguments, *gate.arguments, *up.arguments, out, count, size)
    launch(name, _gated, grid, arguments, K=gate.inputs, FORMAT=gate.kind)
    return out


def alike(weights: Sequence[Layout]) -> bool:
    """Whether one launch may serve them: one way of storing numbers, one number of inputs."""
    ways = {(weight.kind, weight.inputs, *(part.dtype for part in weight.arguments)) for weight in weights}
    return len(ways) == 1 and len(weights) <= BESIDE


def linear_reference(x: Tensor, weight: Tensor) -> Tensor:
    """x [M, K] and weight [N, K], both as numbers in one dtype."""
    return x @ weight.T


def gated_linear_reference(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    return F.gelu(x @ gate.T, approximate="tanh") * (x @ up.T)

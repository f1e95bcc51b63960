"""Dense products: x [M, K] · weightᵀ -> [M, N], and the gated pair of an MLP's first half in one launch.

A program makes BN outputs of BM tokens. BM is the same whatever M is, except that a pass in which every row has a
single token (autoregressive steps) uses the small tiles of "step": its rows are compared with other steps only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from scumble.ops.triton.activations import Activations
from scumble.ops.triton.launch import blocks, launch, tiles_for
from scumble.ops.triton.layouts import Layout
from scumble.ops.triton.products import gated, weighted_sum


@triton.jit
def _linear(
    x, x_groups, x_factor, weight, groups, factor, out, M, N,
    K: tl.constexpr, GATED: tl.constexpr, FORMAT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """weight [N, K]; with GATED [2N, K], gate first. out [M, N]."""
    m = tl.program_id(1).to(tl.int64) * BM + tl.arange(0, BM)
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    live = m < M
    if GATED:
        r = tl.arange(0, 2 * BN)
        rows = tl.program_id(0).to(tl.int64) * BN + r % BN
        rows_ok = rows < N
        both = weighted_sum(
            x, x_groups, x_factor, m, live, weight, groups, factor, rows + (r // BN) * N, rows_ok, 0, 2 * N,
            K, FORMAT, BM, 2 * BN, BK,
        )  # fmt: skip
        total = gated(both, out, BM, BN)
    else:
        total = weighted_sum(
            x, x_groups, x_factor, m, live, weight, groups, factor, n, n < N, 0, N, K, FORMAT, BM, BN, BK
        )
    tl.store(out + m[None, :] * N + n[:, None], total.to(out.dtype.element_ty), mask=live[None, :] & (n < N)[:, None])


def linear(x: Activations, weight: Layout, gated: bool = False, step: bool = False) -> Tensor:
    """x [M, K] in the weight's activation format -> [M, N] in the model's dtype.

    gated: weight [2N, K] holds gate and up, and the result is gelu_tanh(gate) · up. step: see above.
    """
    name = f"{'step' if step else 'linear'}{' gated' if gated else ''} {weight.format}"
    count, size = x.rows, weight.outputs // 2 if gated else weight.outputs
    out = torch.empty(count, size, dtype=x.dtype, device=x.values.device)
    tiles = tiles_for(name, out.device)
    grid = blocks(size, tiles["BN"]), blocks(count, tiles["BM"])
    arguments = (*x.arguments, *weight.arguments, out, count, size)
    launch(name, _linear, grid, arguments, K=weight.inputs, GATED=gated, FORMAT=weight.kind)
    return out


def linear_reference(x: Tensor, weight: Tensor, gated: bool = False) -> Tensor:
    """x [M, K] and weight [N or 2N, K], both as numbers in one dtype."""
    out = x @ weight.T
    if not gated:
        return out
    gate, up = out.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh") * up

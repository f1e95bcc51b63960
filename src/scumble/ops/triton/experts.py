"""Products of many small matrices: every token goes to its experts, sixteen or so tokens to an expert.

    h[slot]   = gelu_tanh(gate_e · x[token]) · (up_e · x[token])        "up"
    out[slot] = down_e · h[slot]                                         "down"
    y[token]  = Σ_c weight[token, c] · out[token · k + c]                "combine", c = 0 … k-1 in this order

A slot is (token, choice): slot = token · k + choice. grouping.py sorts slots by expert and cuts each expert's run into
tiles of BM. Launch tile t works on slots first[t] … first[t] + count[t] - 1 of that order, with expert[t]; tiles with
count 0 return at once, so a captured launch serves any routing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from scumble.ops.triton.activations import Activations, for_format
from scumble.ops.triton.grouping import Groups
from scumble.ops.triton.launch import blocks, launch, power_of_two, tiles_for
from scumble.ops.triton.layouts import Layout
from scumble.ops.triton.products import gated, weighted_sum


@triton.jit
def _slots(order, tile_first, tile, count, BM: tl.constexpr):
    """A launch tile's places in the grouped order and their slots, int64 [BM], and which of them are there."""
    m = tl.arange(0, BM)
    live = m < count
    at = tl.load(tile_first + tile).to(tl.int64) + m
    return at, tl.load(order + at, mask=live, other=0).to(tl.int64), live


@triton.jit
def _up(
    x, x_groups, x_factor, weight, groups, factor, out, order, tile_expert, tile_first, tile_count, N, K: tl.constexpr,
    CHOICES: tl.constexpr, FORMAT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """x [T, K]; weight [E, 2N, K], gate first; out [T·k, N] in grouped order."""
    tile = tl.program_id(1)
    count = tl.load(tile_count + tile)
    if count == 0:
        return
    at, slot, live = _slots(order, tile_first, tile, count, BM)  # pyright: ignore[reportGeneralTypeIssues]
    expert = tl.load(tile_expert + tile).to(tl.int64)
    r = tl.arange(0, 2 * BN)
    n = tl.program_id(0) * BN + r % BN
    both = weighted_sum(
        x, x_groups, x_factor, slot // CHOICES, live, weight, groups, factor, expert, (r // BN) * N + n, n < N, 2 * N,
        K, FORMAT, BM, 2 * BN, BK,
    )  # fmt: skip
    h = gated(both, out, BM, BN)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    tl.store(out + at[None, :] * N + n[:, None], h.to(out.dtype.element_ty), mask=live[None, :] & (n < N)[:, None])


@triton.jit
def _down(
    x, x_groups, x_factor, weight, groups, factor, out, order, tile_expert, tile_first, tile_count, N, K: tl.constexpr,
    FORMAT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """x [T·k, K] in grouped order; weight [E, N, K]; out [T·k, N] by slot."""
    tile = tl.program_id(1)
    count = tl.load(tile_count + tile)
    if count == 0:
        return
    at, slot, live = _slots(order, tile_first, tile, count, BM)  # pyright: ignore[reportGeneralTypeIssues]
    expert = tl.load(tile_expert + tile).to(tl.int64)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    total = weighted_sum(
        x, x_groups, x_factor, at, live, weight, groups, factor, expert, n, n < N, N, K, FORMAT, BM, BN, BK
    )
    tl.store(
        out + slot[None, :] * N + n[:, None], total.to(out.dtype.element_ty), mask=live[None, :] & (n < N)[:, None]
    )


@triton.jit
def _combine(outputs, weights, out, D: tl.constexpr, CHOICES: tl.constexpr, B: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, B)
    total = tl.zeros((B,), tl.float32)
    for choice in tl.static_range(CHOICES):
        slot = token * CHOICES + choice
        value = tl.load(outputs + slot * D + d, mask=d < D, other=0.0).to(tl.float32)
        total += value * tl.load(weights + slot)
    tl.store(out + token * D + d, total.to(out.dtype.element_ty), mask=d < D)


def experts(x: Activations, weights: Tensor, groups: Groups, up: Layout, down: Layout) -> Tensor:
    """x [T, D]; weights [T, k] float32; up [E, 2F, D] (gate first), down [E, D, F] -> [T, D] in the model's dtype."""
    tokens, choices = weights.shape
    width, size = up.outputs // 2, down.outputs
    device = x.values.device
    order = (groups.order, groups.tile_expert, groups.tile_first, groups.tile_count)
    tiles = groups.tile_count.shape[0]

    name = f"up {up.format}"
    h = torch.empty(tokens * choices, width, dtype=x.dtype, device=device)
    grid = blocks(width, tiles_for(name, device)["BN"]), tiles
    arguments = (*x.arguments, *up.arguments, h, *order, width)
    launch(name, _up, grid, arguments, K=up.inputs, CHOICES=choices, FORMAT=up.kind)

    name = f"down {down.format}"
    rounded = for_format(h, down.format)
    outputs = torch.empty(tokens * choices, size, dtype=x.dtype, device=device)
    grid = blocks(size, tiles_for(name, device)["BN"]), tiles
    arguments = (*rounded.arguments, *down.arguments, outputs, *order, size)
    launch(name, _down, grid, arguments, K=down.inputs, FORMAT=down.kind)

    out = torch.empty(tokens, size, dtype=x.dtype, device=device)
    launch("combine", _combine, (tokens,), (outputs, weights, out), D=size, CHOICES=choices, B=power_of_two(size))
    return out


def experts_reference(x: Tensor, weights: Tensor, chosen: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """x [T, D], chosen [T, k]; up [E, 2F, D] and down [E, D, F] as numbers in x's dtype. One slot at a time."""
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for token in range(x.shape[0]):
        for choice in range(chosen.shape[1]):
            expert = int(chosen[token, choice])
            gate, linear = (up[expert] @ x[token]).chunk(2)
            out[token] += (down[expert] @ (F.gelu(gate, approximate="tanh") * linear)).float() * weights[token, choice]
    return out.to(x.dtype)

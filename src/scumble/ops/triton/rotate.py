"""Heads on their way to attention: RMSNorm of each head, then rotary positions ("rotate half").

y = rms(x)
out[i]       = y[i] · cos[i] - y[i + K/2] · sin[i]                          i < K/2
out[i + K/2] = y[i + K/2] · cos[i + K/2] + y[i] · sin[i + K/2]

`heads` does so for queries and keys, and norms values, in one launch: from the projections of attention side by side,
with keys and values going straight to where attention will read them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scumble.ops.pages import Destination
from scumble.ops.triton.launch import blocks, launch, power_of_two


@triton.jit
def _rotated(one, two, scale, weight_1, weight_2, cos, sin, kind: tl.constexpr, HALF: tl.constexpr, table, inside):
    """Both halves [BH, B] float32 of heads, times scale [BH, 1] and their weights, rotated by the table's row."""
    one = (one * scale * weight_1).to(kind).to(tl.float32)  # rounded where the reference rounds
    two = (two * scale * weight_2).to(kind).to(tl.float32)
    cos1 = tl.load(cos + table, mask=inside, other=0.0).to(tl.float32)[None, :]
    cos2 = tl.load(cos + table + HALF, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin1 = tl.load(sin + table, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin2 = tl.load(sin + table + HALF, mask=inside, other=0.0).to(tl.float32)[None, :]
    first = (one * cos1).to(kind).to(tl.float32) - (two * sin1).to(kind).to(tl.float32)
    second = (two * cos2).to(kind).to(tl.float32) + (one * sin2).to(kind).to(tl.float32)
    return first, second


@triton.jit
def _norm_rope(
    x, weight, cos, sin, out, eps, HEADS, K: tl.constexpr, HALF: tl.constexpr, B: tl.constexpr, BH: tl.constexpr
):
    """One token and BH heads a program; cos and sin [N, K] in the model's dtype. B: HALF up to a power of two."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BH + tl.arange(0, BH)
    i = tl.arange(0, B)
    ok = (head < HEADS)[:, None] & (i < HALF)[None, :]
    at = (token * HEADS + head)[:, None] * K + i[None, :]
    one = tl.load(x + at, mask=ok, other=0.0).to(tl.float32)
    two = tl.load(x + at + HALF, mask=ok, other=0.0).to(tl.float32)
    scale = tl.rsqrt((tl.sum(one * one, 1) + tl.sum(two * two, 1)) / K + eps)[:, None]
    inside = i < HALF
    weight_1 = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)[None, :]
    weight_2 = tl.load(weight + HALF + i, mask=inside, other=0.0).to(tl.float32)[None, :]
    kind = out.dtype.element_ty
    first, second = _rotated(one, two, scale, weight_1, weight_2, cos, sin, kind, HALF, token * K + i, inside)
    tl.store(out + at, first.to(kind), mask=ok)
    tl.store(out + at + HALF, second.to(kind), mask=ok)


@triton.jit
def _heads(
    x, q_weight, k_weight, cos, sin, queries, keys, values, places, eps, HEADS, GROUPS, WIDTH,
    SHARED: tl.constexpr, PLACED: tl.constexpr, K: tl.constexpr, HALF: tl.constexpr, B: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """One token and BH of its HEADS + 2 · GROUPS heads a program: queries, then keys, then values. So x [N, WIDTH] has
    them, without values where SHARED: those are made of the raw keys. places [N], where PLACED: the slots of keys and
    values."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BH + tl.arange(0, BH)
    i = tl.arange(0, B)
    inside = i < HALF
    is_key = (head >= HEADS) & (head < HEADS + GROUPS)
    is_value = (head >= HEADS + GROUPS) & (head < HEADS + 2 * GROUPS)
    ok = (head < HEADS + 2 * GROUPS)[:, None] & inside[None, :]
    source = tl.where(is_value, head - GROUPS, head) if SHARED else head
    at = x + token * WIDTH + source[:, None] * K + i[None, :]
    one = tl.load(at, mask=ok, other=0.0).to(tl.float32)
    two = tl.load(at + HALF, mask=ok, other=0.0).to(tl.float32)
    scale = tl.rsqrt((tl.sum(one * one, 1) + tl.sum(two * two, 1)) / K + eps)[:, None]
    q1 = tl.load(q_weight + i, mask=inside, other=0.0).to(tl.float32)[None, :]
    q2 = tl.load(q_weight + HALF + i, mask=inside, other=0.0).to(tl.float32)[None, :]
    k1 = tl.load(k_weight + i, mask=inside, other=0.0).to(tl.float32)[None, :]
    k2 = tl.load(k_weight + HALF + i, mask=inside, other=0.0).to(tl.float32)[None, :]
    weight_1, weight_2 = tl.where(is_key[:, None], k1, q1), tl.where(is_key[:, None], k2, q2)
    kind = queries.dtype.element_ty
    first, second = _rotated(one, two, scale, weight_1, weight_2, cos, sin, kind, HALF, token * K + i, inside)
    first = tl.where(is_value[:, None], one * scale, first).to(kind)
    second = tl.where(is_value[:, None], two * scale, second).to(kind)
    slot = token
    if PLACED:
        slot = tl.load(places + token)
    to_queries = queries + (token * HEADS + head)[:, None] * K + i[None, :]
    to_keys = keys + (slot * GROUPS + head - HEADS)[:, None] * K + i[None, :]
    to_values = values + (slot * GROUPS + head - HEADS - GROUPS)[:, None] * K + i[None, :]
    at = tl.where((head < HEADS)[:, None], to_queries, tl.where(is_key[:, None], to_keys, to_values))
    tl.store(at, first, mask=ok)
    tl.store(at + HALF, second, mask=ok)


def norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """x [N, H, K], weight [K], cos and sin [N, 1, K] -> [N, H, K]; all contiguous, in one dtype."""
    tokens, heads, size = x.shape
    out = torch.empty_like(x)
    grid = tokens, blocks(heads, 8)
    arguments = (x, weight, cos, sin, out, eps, heads)
    launch("norm rope", _norm_rope, grid, arguments, K=size, HALF=size // 2, B=power_of_two(size // 2), BH=8)
    return out


def heads(
    x: Tensor, weights: tuple[Tensor, Tensor], rope: tuple[Tensor, Tensor], groups: int, shared: bool, eps: float,
    to: Destination | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """x [N, (H + 2G)·K]: the projections of queries, keys and values side by side; where shared, those of keys are also
    those of values. weights [K] of queries' and keys' norms; rope: cos and sin [N, 1, K].

    -> queries [N, H, K]; keys and values [N, G, K], or `to`, the pools into which they have been written.
    """
    tokens, size = x.shape[0], weights[0].shape[0]
    count = x.shape[1] // size - groups * (1 if shared else 2)
    queries = torch.empty(tokens, count, size, dtype=x.dtype, device=x.device)
    if to is None:
        shape = tokens, groups, size
        keys, values = (torch.empty(shape, dtype=x.dtype, device=x.device) for _ in range(2))
        places = queries  # not read
    else:
        keys, values, places = to.keys, to.values, to.places
    grid = tokens, blocks(count + 2 * groups, 8)
    arguments = (x, *weights, *rope, queries, keys, values, places, eps, count, groups, x.shape[1])
    launch(
        "heads", _heads, grid, arguments, SHARED=shared, PLACED=to is not None, K=size, HALF=size // 2,
        B=power_of_two(size // 2), BH=8,
    )  # fmt: skip
    return queries, keys, values


def norm_rope_reference(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    h = x.float()
    h = (h * (h.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.float()).to(x.dtype)
    first, second = h.chunk(2, dim=-1)
    return h * cos + torch.cat((-second, first), dim=-1) * sin

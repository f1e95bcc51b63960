"""Heads on their way to attention: RMSNorm of each head, then rotary positions ("rotate half").

y = rms(x)
out[i]       = y[i] · cos[i] - y[i + K/2] · sin[i]                          i < K/2
out[i + K/2] = y[i + K/2] · cos[i + K/2] + y[i] · sin[i + K/2]
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scumble.ops.triton.launch import blocks, launch, power_of_two


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
    one = one * scale * tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)[None, :]
    two = two * scale * tl.load(weight + HALF + i, mask=inside, other=0.0).to(tl.float32)[None, :]
    kind = out.dtype.element_ty
    one, two = one.to(kind).to(tl.float32), two.to(kind).to(tl.float32)  # rounded where the reference rounds
    table = token * K + i
    cos1 = tl.load(cos + table, mask=inside, other=0.0).to(tl.float32)[None, :]
    cos2 = tl.load(cos + table + HALF, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin1 = tl.load(sin + table, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin2 = tl.load(sin + table + HALF, mask=inside, other=0.0).to(tl.float32)[None, :]
    first = (one * cos1).to(kind).to(tl.float32) - (two * sin1).to(kind).to(tl.float32)
    second = (two * cos2).to(kind).to(tl.float32) + (one * sin2).to(kind).to(tl.float32)
    tl.store(out + at, first.to(kind), mask=ok)
    tl.store(out + at + HALF, second.to(kind), mask=ok)


def norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """x [N, H, K], weight [K], cos and sin [N, 1, K] -> [N, H, K]; all contiguous, in one dtype."""
    tokens, heads, size = x.shape
    out = torch.empty_like(x)
    grid = tokens, blocks(heads, 8)
    arguments = (x, weight, cos, sin, out, eps, heads)
    launch("norm rope", _norm_rope, grid, arguments, K=size, HALF=size // 2, B=power_of_two(size // 2), BH=8)
    return out


def norm_rope_reference(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    h = x.float()
    h = (h * (h.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.float()).to(x.dtype)
    first, second = h.chunk(2, dim=-1)
    return h * cos + torch.cat((-second, first), dim=-1) * sin

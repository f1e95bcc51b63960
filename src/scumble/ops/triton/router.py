"""The router: which k of E experts a token goes to, and with which weights. All in float32.

logit = (rms(h) · scale · D^-½) · projᵀ         no weight in this rms
p     = softmax(logit); the k largest, the lowest id first among equals; renormalised to sum 1; × per_expert[id]
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scumble.ops.triton.launch import blocks, launch, power_of_two, tiles_for


@triton.jit(do_not_specialize=["N"])
def _logits(
    h, scale, proj, out, eps, root, N, E, D: tl.constexpr, BM: tl.constexpr, BE: tl.constexpr, BK: tl.constexpr
):
    """out [N, E] float32. The norm's factor is applied to the sums, so h is read once. root: D^-½."""
    n = tl.program_id(1).to(tl.int64) * BM + tl.arange(0, BM)
    e = tl.program_id(0) * BE + tl.arange(0, BE)
    total = tl.zeros((BE, BM), tl.float32)
    squares = tl.zeros((BM,), tl.float32)
    k = tl.arange(0, BK)
    for first in range(0, D, BK):
        inside = k < D - first
        x_at = h + n[None, :] * D + first + k[:, None]
        x = tl.load(x_at, mask=(n < N)[None, :] & inside[:, None], other=0.0).to(tl.float32)
        squares += tl.sum(x * x, 0)
        x *= tl.load(scale + first + k, mask=inside, other=0.0).to(tl.float32)[:, None] * root
        w_at = proj + e[:, None] * D + first + k[None, :]
        w = tl.load(w_at, mask=(e < E)[:, None] & inside[None, :], other=0.0).to(tl.float32)
        total = tl.dot(w, x, total, input_precision="tf32x3")  # three products make up for tf32's short fractions
    total *= tl.rsqrt(squares / D + eps)[None, :]
    tl.store(out + n[None, :] * E + e[:, None], total, mask=(n < N)[None, :] & (e < E)[:, None])


@triton.jit
def _choose(logits, per_expert, weights, chosen, E, CHOICES: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    """One token a program. C: CHOICES up to a power of two."""
    token = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, B)
    logit = tl.load(logits + token * E + e, mask=e < E, other=float("-inf"))
    p = tl.exp(logit - tl.max(logit, 0))
    p = p / tl.sum(p, 0)
    c = tl.arange(0, C)
    best = tl.zeros((C,), tl.float32)
    ids = tl.zeros((C,), tl.int32)
    left = tl.where(e < E, p, -1.0)
    for choice in tl.static_range(CHOICES):  # pyright: ignore[reportGeneralTypeIssues]
        highest = tl.max(left, 0)
        lowest_id = tl.minimum(tl.min(tl.where(left == highest, e, B), 0), E - 1)  # where all are no numbers too
        best = tl.where(c == choice, highest, best)
        ids = tl.where(c == choice, lowest_id, ids)
        left = tl.where(e == lowest_id, -1.0, left)
    best = best / tl.sum(best, 0) * tl.load(per_expert + ids, mask=c < CHOICES, other=0.0).to(tl.float32)
    tl.store(weights + token * CHOICES + c, best, mask=c < CHOICES)
    tl.store(chosen + token * CHOICES + c, ids.to(chosen.dtype.element_ty), mask=c < CHOICES)


def router(h: Tensor, scale: Tensor, proj: Tensor, per_expert: Tensor, k: int, eps: float) -> tuple[Tensor, Tensor]:
    """h [N, D], scale [D], proj [E, D], per_expert [E] -> weights [N, k] float32 and expert ids [N, k] int64."""
    tokens, size = h.shape
    experts = proj.shape[0]
    device = h.device
    tiles = tiles_for("router", device)
    logits = torch.empty(tokens, experts, dtype=torch.float32, device=device)
    grid = blocks(experts, tiles["BE"]), blocks(tokens, tiles["BM"])
    launch("router", _logits, grid, (h, scale, proj, logits, eps, size**-0.5, tokens, experts), D=size)
    weights = torch.empty(tokens, k, dtype=torch.float32, device=device)
    chosen = torch.empty(tokens, k, dtype=torch.int64, device=device)
    arguments = (logits, per_expert, weights, chosen, experts)
    launch("choose", _choose, (tokens,), arguments, CHOICES=k, B=power_of_two(experts), C=power_of_two(k))
    return weights, chosen


def router_reference(
    h: Tensor, scale: Tensor, proj: Tensor, per_expert: Tensor, k: int, eps: float
) -> tuple[Tensor, Tensor]:
    x = h.float()
    x = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * (scale.float() * h.shape[-1] ** -0.5)
    probabilities = torch.softmax(x @ proj.float().T, dim=-1)
    order = probabilities.sort(dim=-1, descending=True, stable=True)
    weights, chosen = order.values[:, :k], order.indices[:, :k]
    return weights / weights.sum(-1, keepdim=True) * per_expert.float()[chosen], chosen

"""The vocabulary operator in tiles over the vocabulary: never more than one [n, tile] block of logits at a time.

One sweep keeps running statistics relative to a running peak (online softmax). A sample then needs one tile more a
position: the sweep remembers every tile's probability mass, so the tile in which the cumulative probability crosses
the uniform is known, and only that tile is computed again.
Extra memory: O(n · tile + n · V / tile + n · D) numbers instead of O(n · V).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scumble.ops.classes import Classified, ClassSweep, Logits
from scumble.ops.plain_vocab import by_position
from scumble.ops.query import VocabQuery
from scumble.ops.result import VocabResult

# [256, 2048] float32 logits are 2 MB: they stay in cache. Most of the extra memory is what the matrix library packs of
# one tile of the embedding; benchmarks/vocab_memory.py measures it.
TILE = 2048


def vocab_head(
    hidden: Tensor,
    embedding: Tensor,
    query: VocabQuery,
    *,
    cap: float,
    head: Any = None,
    tile: int = TILE,
) -> VocabResult:
    """Same contract as `Ops.vocab_head`; `tile` is the number of ids taken at a time.

    head: the embedding in int8, for logits; soft embeddings are of `embedding`.
    """
    n, vocab = hidden.shape[0], embedding.shape[0]
    device = hidden.device
    uniforms, targets, allowed, top = query.uniforms, query.targets, query.masks(), query.top
    if allowed is not None and allowed.ndim == 1:
        allowed = allowed.expand(n, vocab)

    heat = by_position(query.temperature)

    def logits(rows: Tensor | slice, first: int) -> Tensor:
        """z of some rows over ids first … first + tile, float32, -inf where not allowed."""
        last = min(first + tile, vocab)
        if head is None:
            z = (hidden[rows] @ embedding[first:last].T).float()
        else:
            z = head.product(*head.rounded(hidden[rows]), first, last).float()
        own_heat = heat[rows] if isinstance(heat, Tensor) and heat.ndim else heat
        z.div_(cap).tanh_().mul_(cap).div_(own_heat)  # rounded step by step as the reference does
        if allowed is not None:
            z.masked_fill_(~allowed[rows, first:last], float("-inf"))
        return z

    peak = torch.full((n,), float("-inf"), device=device)
    argmax = torch.zeros(n, dtype=torch.int64, device=device)
    total = torch.zeros(n, dtype=torch.float64, device=device)  # Σ exp(z - peak)
    energy = torch.zeros(n, dtype=torch.float64, device=device)  # Σ exp(z - peak) · (z - peak), ≤ 0
    soft = torch.zeros(n, hidden.shape[1], device=device) if query.want_soft else None
    # Log of every tile's mass. One tensor: small ones made between large temporaries would fragment the heap.
    masses = torch.empty((vocab + tile - 1) // tile, n, dtype=torch.float64, device=device)
    best: Tensor | None = None
    best_ids: Tensor | None = None
    own = None if targets is None else torch.full((n,), float("-inf"), device=device)
    sweeps = [class_sweep(one, tile, logits) for one in query.classes]

    for first in range(0, vocab, tile):
        z = logits(slice(None), first)
        for one, sweep in zip(query.classes, sweeps, strict=True):
            sweep.add(z[one.first : one.last])
        tile_peak, tile_argmax = z.max(-1)
        if own is not None and targets is not None:
            inside = targets - first
            here = (inside >= 0) & (inside < z.shape[1])
            own = torch.where(here, z.gather(1, inside.clamp(0, z.shape[1] - 1)[:, None])[:, 0], own)
        if top:
            best, best_ids = _merge_top(z, first, best, best_ids, top)
        higher = tile_peak > peak
        argmax = torch.where(higher, tile_argmax + first, argmax)
        old, peak = peak, torch.maximum(peak, tile_peak)
        base = torch.where(peak == float("-inf"), 0.0, peak)  # all -inf so far: keep exp(-inf - 0) = 0
        # Move what is summed so far to the new peak: with d = old - peak ≤ 0 and w = exp(d),
        # Σ e^(z-peak) = w·total and Σ e^(z-peak)(z-peak) = w·(energy + d·total).
        drop = torch.where(total > 0, (old - base).double(), 0.0)
        factor = drop.exp()
        energy = factor * (energy + drop * total)
        total = factor * total

        shifted = z.sub_(base[:, None])
        weights = shifted.exp()
        mass = weights.sum(-1, dtype=torch.float64)
        if uniforms is not None:
            masses[first // tile] = mass.log() + base
        total = total + mass
        if allowed is not None:
            shifted = shifted.masked_fill(weights == 0, 0.0)  # 0 · -inf
        energy = energy + (shifted.mul_(weights)).sum(-1, dtype=torch.float64)
        if soft is not None:
            part = weights.to(embedding.dtype) @ embedding[first : first + tile]
            soft.mul_(factor.float()[:, None]).add_(part)

    logsumexp = peak.double() + total.log()
    entropy = (total.log() - energy / total).clamp_min(0)
    sample = None
    if uniforms is not None:
        sample = _sample(masses, uniforms.to(device).double(), logits, tile, argmax)
    if soft is not None:
        soft.div_(total.float()[:, None])
    top_logprobs = None if best is None else (best.double() - logsumexp[:, None]).float()
    own_logprobs = None if own is None else (own.double() - logsumexp).float()
    for sweep in sweeps:
        sweep.finish()
    return VocabResult(
        logsumexp.float(), entropy.float(), argmax, sample, soft, best_ids, top_logprobs, own_logprobs, tuple(sweeps)
    )


def class_sweep(asked: Classified, tile: int, logits: Logits) -> ClassSweep:
    """logits counts positions from the call's first on, a sweep from its own."""
    positions = asked.last - asked.first
    return ClassSweep(asked.classes, positions, tile, lambda rows, first: logits(rows + asked.first, first))


def _merge_top(z: Tensor, first: int, best: Tensor | None, ids: Tensor | None, top: int) -> tuple[Tensor, Tensor]:
    values, found = torch.topk(z, min(top, z.shape[1]), dim=-1)
    found = found + first
    if best is not None and ids is not None:
        values, found = torch.cat((best, values), -1), torch.cat((ids, found), -1)
    order = values.sort(dim=-1, descending=True, stable=True).indices[:, :top]
    return values.gather(1, order), found.gather(1, order)


def _sample(masses: Tensor, uniforms: Tensor, logits, tile: int, argmax: Tensor) -> Tensor:
    """Inverse CDF in two steps: masses [tiles, n] choose each row's tile, that tile's ids choose the sample [n]."""
    relative = (masses - masses.max(0).values).exp()  # float64
    running = relative.cumsum(0)
    target = uniforms * running[-1]
    chosen = (running <= target).sum(0).clamp_max(relative.shape[0] - 1)  # first tile whose running mass exceeds it
    chosen = torch.where(relative.gather(0, chosen[None])[0] > 0, chosen, relative.argmax(0))
    own = relative.gather(0, chosen[None])[0]
    inside = target - (running.gather(0, chosen[None])[0] - own)
    share = (inside / own).clamp_min(0)  # 0 … 1 of that tile's mass; rounding may leave it a little below 0
    sample = argmax.clone()
    for index in chosen.unique().tolist():
        rows = (chosen == index).nonzero()[:, 0]
        z = logits(rows, index * tile).double()
        weights = (z - z.max(-1, keepdim=True).values).exp()
        cumulative = weights.cumsum(-1)
        position = (cumulative <= share[rows, None] * cumulative[:, -1:]).sum(-1)
        last = weights.shape[1] - 1 - (weights > 0).flip(-1).int().argmax(-1)
        sample[rows] = torch.minimum(position, last) + index * tile
    return sample

"""The vocabulary operator written plainly: it materializes all n·V logits. Oracle of every faster version."""

from __future__ import annotations

import torch
from torch import Tensor

from scumble.ops.query import VocabQuery
from scumble.ops.result import VocabResult


def softcap(logits: Tensor, cap: float) -> Tensor:
    """cap · tanh(logits / cap): keeps every logit inside (-cap, cap)."""
    return cap * torch.tanh(logits / cap)


def by_position(temperature: float | Tensor) -> float | Tensor:
    """A temperature that divides logits [n, V]: one number, or [n, 1]."""
    return temperature[:, None] if isinstance(temperature, Tensor) and temperature.ndim else temperature


def vocab_head(hidden: Tensor, embedding: Tensor, query: VocabQuery, *, cap: float) -> VocabResult:
    """Same contract as `Ops.vocab_head`. The product is taken in the dtype of `hidden` and `embedding` (as
    `transformers` does), all statistics in float32 or better. Classes are not its business.
    """
    z = softcap((hidden @ embedding.T).float(), cap) / by_position(query.temperature)
    allowed = query.masks()
    if allowed is not None:
        z = z.masked_fill(~allowed, float("-inf"))
    argmax = z.argmax(-1)
    # Everything relative to the peak and in float64: an entropy near 0 keeps its relative accuracy.
    peak = z.gather(1, argmax[:, None]).double()
    shifted = z.double() - peak
    weights = shifted.exp()
    total = weights.sum(-1)
    terms = torch.where(weights > 0, weights * shifted, 0.0)
    entropy = (total.log() - terms.sum(-1) / total).clamp_min(0)

    sample = None
    if query.uniforms is not None:
        target = query.uniforms.double() * total
        beyond = weights.cumsum(-1) > target[:, None]
        # Rounding may leave no id beyond the target; then the last id with any probability is the answer.
        last = weights.shape[1] - 1 - (weights > 0).flip(-1).int().argmax(-1)
        sample = torch.where(beyond.any(-1), beyond.int().argmax(-1), last)
    soft = None
    if query.want_soft:
        soft = (weights / total[:, None]).to(embedding.dtype) @ embedding
        soft = soft.float()
    logsumexp = peak[:, 0] + total.log()
    top_ids = top_logprobs = None
    if query.top:
        best, top_ids = torch.topk(z, query.top, dim=-1)
        top_logprobs = (best.double() - logsumexp[:, None]).float()
    own = None
    if query.targets is not None:
        own = (z.gather(1, query.targets[:, None])[:, 0].double() - logsumexp).float()
    return VocabResult(logsumexp.float(), entropy.float(), argmax, sample, soft, top_ids, top_logprobs, own)

"""The vocabulary operator written plainly: it materializes all n·V logits. Oracle of every faster version."""

from __future__ import annotations

import torch
from torch import Tensor

from scumble.kernels.result import VocabResult


def softcap(logits: Tensor, cap: float) -> Tensor:
    """cap · tanh(logits / cap): keeps every logit inside (-cap, cap)."""
    return cap * torch.tanh(logits / cap)


def vocab_head(
    hidden: Tensor,
    embedding: Tensor,
    *,
    cap: float,
    temperature: float = 1.0,
    uniforms: Tensor | None = None,
    want_soft: bool = False,
    allowed: Tensor | None = None,
    top: int = 0,
) -> VocabResult:
    """Statistics, sample and soft embedding of softmax(softcap(hidden · embeddingᵀ) / temperature).

    hidden [n, D] and embedding [V, D] in one dtype; temperature > 0; uniforms [n] in [0, 1), one per sample wanted;
    allowed: bool [n, V] or [V], False ids get probability 0; top: how many best ids to return.
    The product is taken in the given dtype (as `transformers` does), all statistics in float32 or better.
    """
    z = softcap((hidden @ embedding.T).float(), cap) / temperature
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
    if uniforms is not None:
        target = uniforms.double() * total
        beyond = weights.cumsum(-1) > target[:, None]
        # Rounding may leave no id beyond the target; then the last id with any probability is the answer.
        last = weights.shape[1] - 1 - (weights > 0).flip(-1).int().argmax(-1)
        sample = torch.where(beyond.any(-1), beyond.int().argmax(-1), last)
    soft = None
    if want_soft:
        soft = (weights / total[:, None]).to(embedding.dtype) @ embedding
        soft = soft.float()
    logsumexp = peak[:, 0] + total.log()
    top_ids = top_logprobs = None
    if top:
        best, top_ids = torch.topk(z, top, dim=-1)
        top_logprobs = (best.double() - logsumexp[:, None]).float()
    return VocabResult(logsumexp.float(), entropy.float(), argmax, sample, soft, top_ids, top_logprobs)

"""The next token of n rows, and log-probabilities of tokens that are there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scumble.events import TokenLogprobs
from scumble.model import Transformer
from scumble.ops import VocabQuery
from scumble.settings import GenerationConfig


def choose(logits: Tensor, configs: Sequence[GenerationConfig], uniforms: Tensor) -> Tensor:
    """Ids [n] from logits [n, V]: greedy at temperature 0, else inverse CDF over ids in ascending order.

    top_k keeps the k best ids; top_p the fewest best ids whose probabilities sum to ≥ p. Both may be given.
    uniforms [n] float64 in [0, 1).
    """
    best = logits.argmax(-1)
    if all(config.temperature == 0 for config in configs):
        return best

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]

    heat = column([config.temperature or 1.0 for config in configs])
    probabilities = torch.softmax(logits.double() / heat, dim=-1)
    if any(config.top_k is not None or config.top_p is not None for config in configs):
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(logits.shape[1], device=logits.device)
        before = ordered.cumsum(-1) - ordered  # the mass before an id, so the first always stays
        keep = rank < column([config.top_k or logits.shape[1] for config in configs])
        keep &= before < column([2.0 if config.top_p is None else config.top_p for config in configs])
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered * keep)
    cumulative = probabilities.cumsum(-1)
    beyond = cumulative > uniforms[:, None] * cumulative[:, -1:]
    # Rounding may leave no id beyond the target; then the last id with any probability is the answer.
    last = logits.shape[1] - 1 - (probabilities > 0).flip(-1).int().argmax(-1)
    drawn = torch.where(beyond.any(-1), beyond.int().argmax(-1), last)
    is_greedy = torch.tensor([config.temperature == 0 for config in configs], device=logits.device)
    return torch.where(is_greedy, best, drawn)


def token_logprobs(model: Transformer, hidden: Tensor, ids: Tensor, alternatives: int) -> tuple[TokenLogprobs, ...]:
    """Causal log-probabilities of ids [n] from the hidden states [n, D] of the tokens before them (temperature 1)."""
    query = VocabQuery(top=min(alternatives, model.config.vocab_size), targets=ids)
    result = model.vocab_head(hidden, query)
    assert result.target_logprobs is not None
    tops: list[tuple[tuple[int, float], ...]] = [()] * len(ids)
    if result.top_ids is not None and result.top_logprobs is not None:
        pairs = zip(result.top_ids.tolist(), result.top_logprobs.tolist(), strict=True)
        tops = [tuple(zip(best, values, strict=True)) for best, values in pairs]
    triples = zip(ids.tolist(), result.target_logprobs.tolist(), tops, strict=True)
    return tuple(TokenLogprobs(token, logprob, top) for token, logprob, top in triples)

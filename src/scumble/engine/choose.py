"""The next token of n rows, and log-probabilities of tokens that are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scumble.events import TokenLogprobs
from scumble.model import Transformer
from scumble.ops import VocabQuery
from scumble.settings import GenerationConfig


@dataclass(frozen=True)
class TokenChoice:
    """How n rows choose: heat, top_k, top_p [n, 1] float64, is_greedy [n] bool. draws, cuts: whether any row draws, and
    whether any of these draws among its best ids only."""

    draws: bool
    cuts: bool
    heat: Tensor
    top_k: Tensor
    top_p: Tensor
    is_greedy: Tensor

    @classmethod
    def of(cls, configs: Sequence[GenerationConfig], device: torch.device) -> TokenChoice:
        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device)[:, None]

        is_greedy = [config.temperature == 0 for config in configs]
        return cls(
            not all(is_greedy),
            any(config.top_k is not None or config.top_p is not None for config in configs),
            column([config.temperature or 1.0 for config in configs]),
            column([config.top_k or float("inf") for config in configs]),
            column([2.0 if config.top_p is None else config.top_p for config in configs]),
            torch.tensor(is_greedy, device=device),
        )


def choose(logits: Tensor, how: TokenChoice, uniforms: Tensor) -> Tensor:
    """Ids [n] from logits [n, V]: greedy at temperature 0, else inverse CDF over ids in ascending order.

    top_k keeps the k best ids; top_p the fewest best ids whose probabilities sum to ≥ p. Both may be given.
    uniforms [n] float64 in [0, 1). Probabilities are whole multiples of 2⁻⁶⁰: a card sums floats of one row in another
    order than those of several, or in another order every time.
    """
    best = logits.argmax(-1)
    if not how.draws:
        return best
    masses = _whole(torch.softmax(logits.double() / how.heat, dim=-1))
    if how.cuts:
        ordered, order = masses.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(logits.shape[1], device=logits.device)
        before = ordered.cumsum(-1) - ordered  # the mass before an id, so the first always stays
        keep = (rank < how.top_k) & (before < how.top_p * WHOLE)
        masses = torch.zeros_like(masses).scatter(-1, order, ordered * keep)
    cumulative = masses.cumsum(-1)
    passed = cumulative <= uniforms[:, None] * cumulative[:, -1:]  # never all of them: 1 - 2⁻⁵³ of a float is less
    drawn = passed.sum(-1).clamp_max(logits.shape[1] - 1)  # unless there are no numbers in the logits
    return torch.where(how.is_greedy, best, drawn)


WHOLE = 2.0**60


def _whole(probabilities: Tensor) -> Tensor:
    return (probabilities * WHOLE).round().long()


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

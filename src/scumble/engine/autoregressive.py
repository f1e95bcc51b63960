"""The honest baseline: the same weights, one token at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from scumble.engine.commit import token_logprobs
from scumble.engine.prefill import prefill
from scumble.engine.request import Request, Settings
from scumble.engine.steps import Answer, Steps, TokensCommitted
from scumble.errors import check_output
from scumble.model import Segment, Transformer


def autoregressive(model: Transformer, request: Request) -> Steps:
    """Answer a request token by token. Token number i takes the noise of canvas i, pass 0, position 0."""
    settings = request.settings
    cache = model.new_cache()
    hidden = yield from prefill(request.prompt.to(model.device), cache)
    forwards = 1
    for index in range(settings.max_new_tokens):
        logits = model.logits(hidden)[0]
        check_output(float(logits.max()))  # NaN if one of them is
        if index == 0 and request.first is not None:
            first = request.first.to(model.device)
            logits = torch.full_like(logits, float("-inf")).index_copy_(0, first, logits[first])
        uniform = float(request.noises[0].uniform(index, 0, 1)[0])
        token = torch.tensor([choose(logits, settings, uniform)], device=model.device)
        logprobs = None
        if settings.logprobs is not None:
            logprobs = token_logprobs(model, hidden, token, settings.logprobs)
        yield TokensCommitted((int(token),), index, logprobs)
        if int(token) in settings.eos_ids:
            return Answer("stop", (forwards,), forwards)
        if index + 1 < settings.max_new_tokens:
            hidden = yield Segment(token, cache, "encode")
            assert hidden is not None
            forwards += 1
    return Answer("length", (forwards,), forwards)


def choose(logits: Tensor, settings: Settings, uniform: float) -> int:
    """One id from logits [V]: greedy at temperature 0, else inverse CDF over ids in ascending order.

    top_k keeps the k best ids; top_p the fewest best ids whose probabilities sum to ≥ p. Both may be given.
    """
    if settings.temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.double() / settings.temperature, dim=-1)
    if settings.top_k is not None or settings.top_p is not None:
        ordered, order = probabilities.sort(descending=True, stable=True)
        keep = torch.ones_like(ordered, dtype=torch.bool)
        if settings.top_k is not None:
            keep[settings.top_k :] = False
        if settings.top_p is not None:
            keep &= ordered.cumsum(0) - ordered < settings.top_p  # the mass before an id, so the first always stays
        probabilities = probabilities.clone()
        probabilities[order[~keep]] = 0
    cumulative = probabilities.cumsum(0)
    beyond = (cumulative > uniform * cumulative[-1]).nonzero()
    return int(beyond[0]) if beyond.numel() else int(probabilities.nonzero()[-1])

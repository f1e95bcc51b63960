"""Commit: cut a finished canvas, encode it into the context, and read the log-probabilities off on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from scumble.engine.request import Settings
from scumble.events import TokenLogprobs
from scumble.model import Transformer


def cut(ids: Tensor, settings: Settings, room: int) -> tuple[Tensor, bool]:
    """The first `room` ids, up to the end of the answer and including what ends it; and whether there was an end.

    That is an end-of-sequence id. Models also fill the rest of a canvas with pads and leave the end id out: then the
    first of these pads is the end. One pad alone is not, since a canvas of one or two tokens could be it by chance.
    """
    kept = ids[:room].tolist()
    for position, token in enumerate(kept):
        if token in settings.eos_ids:
            return ids[: position + 1], True
    filled = len(kept)
    while filled and kept[filled - 1] == settings.pad_id:
        filled -= 1
    if len(kept) - filled > 1:
        return ids[: filled + 1], True
    return ids[:room], False


def token_logprobs(model: Transformer, hidden: Tensor, ids: Tensor, alternatives: int) -> tuple[TokenLogprobs, ...]:
    """Causal log-probabilities of ids [n] from the hidden states [n, D] of the tokens before them (temperature 1)."""
    result = model.vocab_head(hidden, top=min(alternatives, model.config.vocab_size), targets=ids)
    assert result.target_logprobs is not None
    out = []
    for index, (token, logprob) in enumerate(zip(ids.tolist(), result.target_logprobs.tolist(), strict=True)):
        top: tuple[tuple[int, float], ...] = ()
        if result.top_ids is not None and result.top_logprobs is not None:
            top = tuple(zip(result.top_ids[index].tolist(), result.top_logprobs[index].tolist(), strict=True))
        out.append(TokenLogprobs(token, logprob, top))
    return tuple(out)


def with_alternatives(logprobs: Sequence[TokenLogprobs], count: int) -> tuple[TokenLogprobs, ...]:
    """The same with `count` alternatives a token at most."""
    return tuple(replace(one, top=one.top[:count]) for one in logprobs)


def shift(last: Tensor, hidden: Tensor) -> Tensor:
    """Hidden states that predict a run of tokens: the one before the run [1, D], then all of the run's but its last."""
    return torch.cat((last, hidden[:-1]))

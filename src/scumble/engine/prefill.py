"""Encode a prompt into the cache, chunk by chunk."""

from __future__ import annotations

from collections.abc import Generator

from torch import Tensor

from scumble.model import Cache, Segment

CHUNK = 512  # tokens; bounds the memory of attention masks and activations. A fixed size keeps results reproducible.


def prefill(prompt: Tensor, cache: Cache, quiet: bool = False) -> Generator[Segment, Tensor, Tensor]:
    """Encode ids [n]; returns the hidden state [1, D] of the last one, which predicts the first answer token.

    quiet: fill the cache alone and return no hidden state [0, D].
    """
    hidden = None
    for chunk in prompt.split(CHUNK):
        hidden = yield Segment(chunk, cache, "encode", quiet=quiet)
    assert hidden is not None, "an empty prompt is refused by make_request"
    return hidden[-1:]

"""The language between a row's program and the scheduler.

A row is written as straight-line code: a Python generator that yields a `Segment` when it needs the model and is sent
that segment's hidden states [n, D] in return (none from a quiet one). Segments that may share one forward are yielded
as a tuple. In between it yields what happened (`PassDone`, `TokensCommitted`) and
is sent None. It returns an `Answer`. The scheduler runs many such programs side by side.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scumble.events import FinishReason, TokenLogprobs
from scumble.model import Segment


@dataclass(frozen=True)
class PassDone:
    """One pass over a canvas of length L. Ids int64 [L], accepted bool [L], entropy float32 [L] in nats.

    canvas_in went into the pass, canvas_out goes into the next one. temperature: what the logits were divided by.
    stopped: this was the canvas's last pass because the stopping rule said so (not because passes ran out).
    candidate: which of the canvas's candidates, from 0; all of them have pass 0 together, then pass 1, ….
    """

    canvas_index: int
    pass_index: int
    temperature: float
    canvas_in: Tensor
    canvas_out: Tensor
    accepted: Tensor
    argmax: Tensor
    proposal: Tensor
    entropy: Tensor
    stopped: bool
    candidate: int = 0
    row: int = 0


@dataclass(frozen=True)
class TokensCommitted:
    """Ids that will not change any more, in order. logprobs: one a token, when the request asked for them. reads: how
    often the causal model read the canvas's texts to choose or correct them."""

    ids: tuple[int, ...]
    canvas_index: int
    logprobs: tuple[TokenLogprobs, ...] | None = None
    reads: int = 0


@dataclass(frozen=True)
class Answer:
    """passes: by canvas, those of the candidate that took most. evaluations: of canvases, by all candidates."""

    finish_reason: FinishReason
    passes: tuple[int, ...]
    evaluations: int


Event = PassDone | TokensCommitted
Work = Segment | tuple[Segment, ...]
Steps = Generator[Work | Event, Any, Answer]  # sent: hidden states [n, D] after Work, else None

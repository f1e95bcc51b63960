"""The language between a row's life and the engine.

A life is a generator. It yields what it needs and is sent the result: `Prefill`, `Denoise`, `Read`, `Step`. In between
it yields `TokensCommitted`, which needs no result, and it returns an `Answer`. The row's text is its prompt and what
it has committed; the engine sees to it that all of it is encoded before what the life asks for next, or along with it.
The engine advances many lives side by side and decides what of them shares a forward; a life knows nothing of batches,
and computes nothing itself.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scumble.decode.constraint import Restriction
from scumble.diffusion import Canvas, Noise
from scumble.events import FinishReason, TokenLogprobs

Ids = tuple[int, ...]


# --- what a life may ask for ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prefill:
    """Encode the prompt. Sent: the hidden state [1, D] of its last token if `heard`, else None."""

    heard: bool


@dataclass(frozen=True)
class Start:
    """A canvas before its first pass: canvas [1, L], the noise of its passes, and what it may hold."""

    canvas: Canvas
    noise: Noise
    restriction: Restriction


@dataclass(frozen=True)
class Denoise:
    """Denoise canvas number `index` of the answer, as many candidates as there are starts, all of one length. What was
    committed last is encoded along with the first pass. Sent: a Denoised for each start."""

    index: int
    starts: tuple[Start, ...]


@dataclass(frozen=True)
class Denoised:
    ids: Ids  # [L], what the commit rule takes from the last pass
    passes: int


@dataclass(frozen=True)
class Read:
    """Read texts that might follow the context, causally; the context stays as it is. Sent: a Reading for each text.

    behind [1, D]: hidden state of the context's last token. alternatives: how many best ids to report a token.
    """

    texts: tuple[Ids, ...]
    behind: Tensor
    alternatives: int


@dataclass(frozen=True)
class Reading:
    """logprobs: one a token, at temperature 1. last [1, D]: hidden state of the text's last token."""

    logprobs: tuple[TokenLogprobs, ...]
    last: Tensor


@dataclass(frozen=True)
class Step:
    """Encode what is not encoded yet and choose token number `index` of the answer. Sent: a Stepped."""

    index: int
    restriction: Restriction


@dataclass(frozen=True)
class Stepped:
    token: int
    logprobs: TokenLogprobs | None


# --- what a life tells ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokensCommitted:
    """Ids that will not change any more, in order. logprobs: one a token, when the request asked for them.

    passes: those of the canvas's slowest candidate; of a single token: 1. evaluations: of canvases, by all candidates.
    reads: how often the causal model read the canvas's texts to choose or correct them.
    """

    ids: Ids
    canvas_index: int
    logprobs: tuple[TokenLogprobs, ...] | None = None
    passes: int = 1
    evaluations: int = 1
    reads: int = 0


@dataclass(frozen=True)
class Answer:
    """passes: by canvas, those of the candidate that took most. evaluations: of canvases, by all candidates.
    cached_tokens: of the prompt, those whose keys and values another request had left; the engine says."""

    finish_reason: FinishReason
    passes: tuple[int, ...]
    evaluations: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class PassDone:
    """One pass over a canvas of length L, as the engine tells it to who asked for drafts. Ids int64 [L], accepted bool
    [L], entropy float32 [L] in nats.

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


Command = Prefill | Denoise | Read | Step
Life = Generator[Command | TokensCommitted, Any, Answer]

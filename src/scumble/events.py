"""What a caller gets back: a stream of `Draft` | `Committed` | `Finished`, and the finished `Generation`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probability (nats) of one committed token under the causal model, and of the best alternatives."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class ToolCall:
    """A function that the model asks for. arguments: JSON values by name. id: to name it by in a tool's message; the
    same request gets the same ids."""

    name: str
    arguments: Mapping[str, Any]
    id: str


@dataclass(frozen=True)
class Generation:
    """A finished answer.

    text: decoded answer without thinking, tool calls and control tokens, cut before a stop string; "" when the model
        has no tokenizer.
    token_ids: the ids, including the end-of-sequence id that ended them, nothing after it, no pads behind it. The first
        one may begin with white space that ended the prompt; `text` leaves that out.
    finish_reason: "stop" (the model came to its end, or to a stop string) or "length". stop_string: which one.
    passes: denoising passes, one number a canvas; of the autoregressive decoder: forward passes, one number in all.
    evaluations: how often a canvas went through the model: sum(passes), but each candidate counts for itself.
    reads: how often the causal model read finished texts to choose or to correct one, all of a canvas's at once.
    cached_tokens: how many of the prompt's tokens another request had left encoded, so they cost nothing here.
    seconds: wall time from request to end; first_text_seconds: to the first committed token.
    thinking: what the model wrote in its thought channel, wherever that was opened, in the answer or at the prompt's
        end; None where there was no such channel. thinking_tokens: how many of token_ids it took, its name included.
        thinking_closed: False where the answer ended inside it.
    tool_calls: the functions that the model asks for, in order.
    malformed_tool_calls: what stands between the markers of a call and is none, or breaks off at the token limit, as it
        was written, markers included. The same stands in `text`, without markers.
    parsed: what the text means, where the request asked for a structure: the JSON value, or the object of the pydantic
        model that was its schema; else the text. None without a structure.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    passes: tuple[int, ...]
    evaluations: int
    reads: int
    seconds: float
    first_text_seconds: float
    logprobs: tuple[TokenLogprobs, ...] | None = None
    thinking: str | None = None
    thinking_tokens: int = 0
    thinking_closed: bool = True
    tool_calls: tuple[ToolCall, ...] = ()
    malformed_tool_calls: tuple[str, ...] = ()
    parsed: Any = None
    cached_tokens: int = 0
    stop_string: str | None = None


@dataclass(frozen=True)
class Draft:
    """A canvas after one pass: the present best guess (argmax) of all its positions; nothing of it is promised.

    accepted: which positions the pass accepted. entropy: of each position, in nats. candidate: of the canvas (see
    `best_of`), from 0; which of them will be committed is known at the end only. row: which request of a batch. typed:
    what the canvas's first token begins with but the prompt has already (see `LLM.generate`); the text leaves it out.
    """

    token_ids: tuple[int, ...]
    text: str
    canvas: int
    pass_index: int
    accepted: tuple[bool, ...]
    candidate: int = 0
    row: int = 0
    typed: str = ""
    entropy: tuple[float, ...] = ()


@dataclass(frozen=True)
class Committed:
    """New tokens that will not change.

    text: the new characters of the answer, never half a one (it may lag behind the ids). thinking: those of the thought
    channel. tool_calls: the calls that came to their end.
    """

    token_ids: tuple[int, ...]
    text: str
    canvas: int
    row: int = 0
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Finished:
    generation: Generation
    row: int = 0


StreamEvent = Draft | Committed | Finished

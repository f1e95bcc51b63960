"""What a caller sees of one request: engine events in, text events out."""

from __future__ import annotations

import time
from collections.abc import Iterator

from scumble.decode import Answer, PassDone, Request, TokensCommitted
from scumble.events import Committed, Draft, Finished, Generation, StreamEvent, TokenLogprobs
from scumble.text import AnswerText, Tokenizer


class Row:
    """The text side of one request while it runs."""

    def __init__(self, tokenizer: Tokenizer | None, request: Request, number: int, started: float):
        self.number = number
        self.request = request
        pads = frozenset() if request.pad_id is None else {request.pad_id}
        self.answer = AnswerText(
            tokenizer, request.config.stop or (), request.typed,
            prompt=request.prompt.tolist(), ends=request.silent_ids, pads=pads,
        )  # fmt: skip
        self.passes: list[int] = []
        self.evaluations = 0
        self.reads = 0
        self.is_over = False
        self._tokenizer = tokenizer
        self._started = started
        self._first: float | None = None
        self._logprobs: list[TokenLogprobs] = []

    def draft(self, event: PassDone) -> Draft:
        ids = tuple(event.argmax.tolist())
        text = ""
        if self._tokenizer is not None:
            ends = [i for i, token in enumerate(ids) if token in self.request.eos_ids]
            shown = ids[: ends[0]] if ends else ids
            text = self._tokenizer.decode([token for token in shown if token not in self.request.silent_ids])
        typed = self.request.typed if event.canvas_index == 0 else ""
        accepted = tuple(event.accepted.tolist())
        return Draft(
            ids, text.removeprefix(typed), event.canvas_index, event.pass_index, accepted, event.candidate, self.number,
            typed, tuple(event.entropy.tolist()),
        )  # fmt: skip

    def commit(self, event: TokensCommitted) -> Committed:
        if self._first is None:
            self._first = time.perf_counter() - self._started
        if self.request.decoder == "autoregressive":
            self.passes = [event.canvas_index + 1]
        else:
            self.passes.append(event.passes)
        self.evaluations += event.evaluations
        self.reads += event.reads
        before = len(self.answer.ids)
        fresh = self.answer.feed(event.ids)
        self._logprobs += event.logprobs or ()
        ids = tuple(self.answer.ids[before:])
        return Committed(
            ids, fresh.text, event.canvas_index, self.number, fresh.thinking, tuple(fresh.tool_calls)
        )  # fmt: skip

    def finish(self, end: Answer) -> Iterator[StreamEvent]:
        self.is_over = True
        rest = self.answer.finish()
        if rest.text or rest.thinking:
            yield Committed((), rest.text, len(end.passes) - 1, self.number, rest.thinking)
        ids = tuple(self.answer.ids)
        wanted = self.request.config.logprobs is not None
        reason = "stop" if self.answer.stopped else end.finish_reason
        parse = self.request.parse
        seconds = time.perf_counter() - self._started
        generation = Generation(
            text=self.answer.text,
            token_ids=ids,
            finish_reason=reason,
            stop_string=self.answer.stop_string,
            prompt_tokens=self.request.prompt.shape[0],
            passes=end.passes,
            evaluations=end.evaluations,
            reads=self.reads,
            cached_tokens=end.cached_tokens,
            seconds=seconds,
            first_text_seconds=self._first if self._first is not None else seconds,
            logprobs=tuple(self._logprobs[: len(ids)]) if wanted else None,
            thinking=self.answer.thinking,
            thinking_tokens=self.answer.thinking_tokens,
            thinking_closed=self.answer.thinking_closed,
            tool_calls=tuple(self.answer.tool_calls),
            malformed_tool_calls=tuple(self.answer.malformed),
            parsed=parse(self.answer.text) if parse is not None and reason == "stop" else None,
        )
        yield Finished(generation, self.number)

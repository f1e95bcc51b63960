"""Requests put to the engine, and what comes of them: a stream of events, or the answer at its end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

from scumble.answers import Trace, answers, async_answers
from scumble.decode import Request
from scumble.engine import Driver, Engine, Stats
from scumble.errors import RequestsFailed
from scumble.events import Finished, Generation, StreamEvent
from scumble.model import Transformer
from scumble.requests import Requests
from scumble.text import Tokenizer

Progress = Callable[[int, int], None]


class Asking(Requests):
    """One engine for all who ask: several threads and event loops may do so at the same time."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None = None,
        *,
        folder: Path | None = None,
        defaults: Mapping[str, Any] | None = None,
    ):
        super().__init__(model, tokenizer, folder=folder, defaults=defaults)
        self._driver = Driver(Engine(model))

    def stats(self) -> Stats:
        """What the engine is doing: requests waiting and running, passes, tokens …."""
        return self._driver.engine.stats

    def answer(self, request: Request) -> Generation:
        """The answer to a request that one of the methods of this class has made."""
        return last(self.stream_request(request, drafts=False))

    def alone(self) -> AbstractContextManager[object]:
        """While it is held, the engine does nothing with the model."""
        return self._driver.alone()

    def stream_request(
        self, request: Request, *, drafts: bool = True, trace: Trace | None = None
    ) -> Iterator[StreamEvent]:
        """Answer a request, event by event; without drafts, those are not made."""
        return self.stream_requests([request], drafts=drafts, trace=trace)

    def stream_requests(
        self, requests: Iterable[Request], *, drafts: bool = True, trace: Trace | None = None
    ) -> Iterator[StreamEvent]:
        """Answer requests side by side; events carry their row. However many there are, few are in the engine at a
        time."""
        return answers(self._driver, self.tokenizer, requests, drafts, trace)

    def answer_all(
        self, requests: Sequence[Request], progress: Progress | None = None, trace: Trace | None = None
    ) -> list[Generation]:
        """The answers to any number of requests, in order. progress: called with how many of how many are done.

        Raises RequestsFailed when all are over, if some failed; of a single request, its own error.
        """
        done: list[Generation | None] = [None] * len(requests)
        errors: dict[int, Exception] = {}
        finished = 0
        for event in answers(self._driver, self.tokenizer, requests, False, trace, errors):
            if isinstance(event, Finished):
                done[event.row] = event.generation
                finished += 1
                if progress is not None:
                    progress(finished, len(done))
        if errors:
            raise errors[0] if len(requests) == 1 else RequestsFailed(done, errors)
        return cast(list[Generation], done)

    def astream_request(self, request: Request, *, drafts: bool = True) -> AsyncGenerator[StreamEvent, None]:
        """Like `stream_request`, in the manner of `astream`."""
        return async_answers(self._driver, self.tokenizer, request, drafts)


def last(events: Iterator[StreamEvent]) -> Generation:
    """Run a stream of one request to its end."""
    for event in events:
        if isinstance(event, Finished):
            return event.generation
    raise AssertionError("a stream ends with Finished")

"""Requests in, events with text out: the engine's events as a caller sees them, for callers that wait and for event
loops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from queue import SimpleQueue

from scumble.decode import Answer, PassDone, Request, TokensCommitted
from scumble.engine import Driver, Event, Failed
from scumble.engine.row import Row as EngineRow
from scumble.events import StreamEvent
from scumble.row import Row
from scumble.text import Tokenizer

Trace = Callable[[PassDone], None]
IN_FLIGHT = 64  # requests of one call in the engine at a time: others' requests never wait for ten thousand of these


def answers(
    driver: Driver,
    tokenizer: Tokenizer | None,
    requests: Iterable[Request],
    drafts: bool,
    trace: Trace | None,
    errors: dict[int, Exception] | None = None,
) -> Iterator[StreamEvent]:
    """Events of all requests, as they come; each carries its row. Closing it cancels what is not over.

    errors: takes why requests failed, by row; without it the first error is raised, and the others are cancelled.
    """
    inbox: SimpleQueue[tuple[int, Event]] = SimpleQueue()
    following = enumerate(requests)
    rows: dict[int, Row] = {}  # the text's side of each
    asked: dict[int, EngineRow] = {}
    with driver.caller() as caller:

        def let_in(count: int) -> None:
            for number, request in islice(following, count):
                rows[number] = Row(tokenizer, request, number, time.perf_counter())
                asked[number] = caller.add(request, partial(_put, inbox, number), drafts or trace is not None)

        let_in(IN_FLIGHT)
        while rows:
            number, event = caller.next(inbox)
            if number not in rows:  # it ended at a stop string; what the engine did since is not wanted
                continue
            if isinstance(event, PassDone) and trace is not None:
                trace(replace(event, row=number))
            if isinstance(event, PassDone) and not drafts:
                continue
            if isinstance(event, Failed) and errors is not None:
                rows[number].is_over, errors[number] = True, event.error
            else:
                yield from shown(rows[number], event)
            if rows[number].is_over:
                del rows[number]
                caller.cancel(asked.pop(number))
                let_in(1)


async def async_answers(
    driver: Driver, tokenizer: Tokenizer | None, request: Request, drafts: bool
) -> AsyncGenerator[StreamEvent, None]:
    """Events of one request, as they come. The engine's thread works, the loop stays free."""
    loop, inbox = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def put(event: Event) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(inbox.put_nowait, event)

    row = Row(tokenizer, request, 0, time.perf_counter())
    with driver.caller() as caller:
        caller.add(request, put, drafts, in_thread=True)
        while not row.is_over:
            for event in shown(row, await inbox.get()):
                yield event


def _put(inbox: SimpleQueue[tuple[int, Event]], number: int, event: Event) -> None:
    inbox.put((number, event))


def shown(row: Row, event: Event) -> Iterator[StreamEvent]:
    """An event of the engine as its caller sees it; raises what the request failed with."""
    if isinstance(event, PassDone):
        yield row.draft(event)
    elif isinstance(event, TokensCommitted):
        yield row.commit(event)
        if row.answer.stopped:  # a stop string: the answer ends here, whatever the engine would go on with
            yield from row.finish(Answer("stop", tuple(row.passes), row.evaluations))
    elif isinstance(event, Failed):
        row.is_over = True
        raise event.error
    else:
        yield from row.finish(event)

"""A stream of events for an event loop: the model works in threads, a pass at a time, and the loop stays free."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing

from scumble.events import Finished, Generation, StreamEvent


async def in_threads(start: Callable[[], Iterator[StreamEvent]]) -> AsyncGenerator[StreamEvent, None]:
    """Events of the stream that `start` begins. Closing or cancelling it ends the work after the present pass."""
    events = await asyncio.to_thread(start)
    step: asyncio.Future[StreamEvent | None] | None = None
    try:
        while True:
            step = asyncio.ensure_future(asyncio.to_thread(next, events, None))
            event = await asyncio.shield(step)
            if event is None:
                return
            yield event
    finally:  # cancelled in the middle of a pass: a thread cannot be stopped, so let it end its pass first
        if step is not None and not step.done():
            await asyncio.wait([step])
        events.close()  # type: ignore[attr-defined]  # a generator


async def last_in_threads(start: Callable[[], Iterator[StreamEvent]]) -> Generation:
    """The generation at the end of a stream of one row."""
    async with aclosing(in_threads(start)) as events:
        async for event in events:
            if isinstance(event, Finished):
                return event.generation
    raise AssertionError("a stream ends with Finished")

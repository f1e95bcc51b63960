"""Server-sent events, several answers woven into one stream, and readers who leave or do not read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Message, Receive, Scope, Send

T = TypeVar("T")
KEEP_ALIVE_SECONDS = 15.0  # a comment is sent after so long a silence: proxies close quiet connections
CANCELLED = "cancelled"  # the outcome of a call whose client has left
# For the OpenAPI schema: with "stream" a route answers in events.
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {"schema": {}}, "text/event-stream": {"schema": {}}}}
}
DONE = b"data: [DONE]\n\n"


class ClientGone(Exception):
    """The client closed the connection, or stopped reading it."""


def data_event(payload: Mapping[str, Any]) -> bytes:
    """One event in OpenAI's form: no name, one line of JSON."""
    return b"data: " + compact(payload) + b"\n\n"


def named_event(name: str, payload: Mapping[str, Any]) -> bytes:
    """One event with its name, as Anthropic's and the Responses API send them."""
    return b"event: " + name.encode() + b"\ndata: " + compact(payload) + b"\n\n"


def compact(payload: Any) -> bytes:
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


class EventStream(Response):
    """A response of events. Ends its source when the client leaves, or takes longer than write_seconds for a piece."""

    media_type = "text/event-stream"

    def __init__(
        self, source: AsyncGenerator[bytes, None], write_seconds: float, headers: Mapping[str, str] | None = None
    ) -> None:
        self.source = source
        self.write_seconds = write_seconds
        self.complete = False
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = asyncio.ensure_future(self._write(send))
        watcher = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait({writer, watcher}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watcher.cancel()
            if not self.complete:  # else the writer only has to return
                writer.cancel()
            await asyncio.gather(writer, watcher, return_exceptions=True)
        if writer.cancelled() or isinstance(writer.exception(), ClientGone):
            scope["scumble.call"].outcome = CANCELLED
        else:
            writer.result()

    async def _write(self, send: Send) -> None:
        async def put(message: Message) -> None:
            try:
                async with asyncio.timeout(self.write_seconds):  # wait_for may swallow a cancellation (Python 3.11)
                    await send(message)
            except (TimeoutError, OSError):
                raise ClientGone from None

        await put({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(_with_keep_alive(self.source)) as pieces:
            async for piece in pieces:
                await put({"type": "http.response.body", "body": piece, "more_body": True})
        self.complete = True
        await put({"type": "http.response.body", "body": b"", "more_body": False})


async def _with_keep_alive(source: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    step: asyncio.Future[bytes] | None = None
    try:
        while True:
            step = asyncio.ensure_future(anext(source))  # type: ignore[arg-type]
            while not (await asyncio.wait({step}, timeout=KEEP_ALIVE_SECONDS))[0]:
                yield b": still working\n\n"
            try:
                piece = step.result()
            except StopAsyncIteration:
                return
            yield piece
    finally:
        if step is not None and not step.done():
            step.cancel()
            await asyncio.gather(step, return_exceptions=True)
        await source.aclose()


async def woven(sources: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Items of several iterators as they come, with the number of the iterator. An error in one ends them all."""
    queue: asyncio.Queue[tuple[int, T] | BaseException | None] = asyncio.Queue()

    async def pump(number: int, source: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(source) as items:
                async for item in items:
                    queue.put_nowait((number, item))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(number, source)) for number, source in enumerate(sources)]
    try:
        open_sources = len(tasks)
        while open_sources:
            item = await queue.get()
            if item is None:
                open_sources -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled where the client leaves before it is there."""
    worker = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_until_gone(request.receive))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not worker.done():
            raise ClientGone
        return worker.result()
    finally:
        worker.cancel()
        watcher.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)


async def _until_gone(receive: Callable[[], Awaitable[Message]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

"""The process around the app: sockets, warm-up, SIGTERM, and connections that are slow or framed in two ways."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import time
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from scumble.llm import LLM
from scumble.serve.app import make_app, make_service
from scumble.serve.log import log_event, start_logging
from scumble.serve.service import Service
from scumble.serve.settings import ServeSettings

MAX_HEAD_BYTES = 32 * 1024


class Protocol(H11Protocol):
    """uvicorn's HTTP/1.1 with a deadline for the head of each request: who sends it byte by byte is cut off."""

    _deadline: asyncio.TimerHandle | None = None
    head_seconds = 20.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._deadline = self.loop.call_later(self.head_seconds, self._cut)

    def _cut(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        super().data_received(data)
        if self._deadline is not None and self.cycle is not None and not self.cycle.response_complete:
            self._deadline.cancel()
            self._deadline = None
        elif idle and self._deadline is None:  # a further request on this connection has begun
            self._deadline = self.loop.call_later(self.head_seconds, self._cut_unfinished)

    def _cut_unfinished(self) -> None:
        self._deadline = None
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)


class Server(uvicorn.Server):
    """uvicorn, with its end in our hands: readiness turns red at once, what is in flight gets its time."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.service.draining = True
        log_event("draining", running=self.service.backend.slots.running)
        super().handle_exit(sig, frame)
        # A moment before uvicorn cuts what is left, so that those clients read why.
        later = max(0.0, self.service.settings.drain_seconds - 1)
        asyncio.get_running_loop().call_later(later, self.service.give_up)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._warming = asyncio.create_task(self.service.start())
            self._batching = asyncio.create_task(self._answer_batches())
            self._watching = asyncio.create_task(self.service.watch(self.service.settings.stall_seconds))

    async def _answer_batches(self) -> None:
        await asyncio.wait([self._warming])
        if self.service.batches is not None:
            await self.service.batches.run(cast("ASGIApp", self.config.app))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.started:
            self._batching.cancel()  # what it was at is asked again by the next server
        ends = time.monotonic() + self.service.settings.drain_seconds
        await super().shutdown(sockets)
        await self.service.finish(max(0.0, ends - time.monotonic()))
        with contextlib.suppress(asyncio.CancelledError):
            self._warming.cancel()
            self._watching.cancel()
            await asyncio.gather(self._batching, return_exceptions=True)  # its files are closed before others get them
        self.service.stop()


def make_server(llm: LLM, settings: ServeSettings) -> Server:
    """A server that is not yet listening; `run()` it, or `await serve()`."""
    service = make_service(llm, settings)

    class OwnProtocol(Protocol):
        head_seconds = settings.read_seconds

    config = uvicorn.Config(
        make_app(service),
        host=settings.host,
        port=settings.port,
        http=OwnProtocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(settings.drain_seconds),
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        ssl_certfile=None if settings.tls_cert is None else str(settings.tls_cert),
        ssl_keyfile=None if settings.tls_key is None else str(settings.tls_key),
    )
    return Server(config, service)


def serve(llm: LLM, settings: ServeSettings) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    start_logging()
    server = make_server(llm, settings)
    # When all is drained, uvicorn raises the signal again: then the process ends as it should.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    log_event("starting", host=settings.host, port=settings.port, model=server.service.backend.names[0])
    server.run()

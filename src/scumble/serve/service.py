"""All parts of a running server, in one object that handlers find at `request.app.state.service`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from scumble.events import Committed, Finished, StreamEvent
from scumble.serve.access import Access
from scumble.serve.backend import Backend, Job
from scumble.serve.batch_runs import Batches
from scumble.serve.call import Call
from scumble.serve.errors import ApiError, translated
from scumble.serve.fields import NOT_APPLIED
from scumble.serve.log import log_event, log_failure
from scumble.serve.metrics import Metrics
from scumble.serve.settings import ServeSettings
from scumble.serve.stream import data_event, woven

LAST_WORDS = 5.0  # seconds in which the ends of requests that were cut short are recorded


@dataclass
class Service:
    """ready: the model is warm. draining: no new requests, those in flight are finished."""

    settings: ServeSettings
    backend: Backend
    metrics: Metrics
    access: Access
    batches: Batches | None = None  # None: no folder to keep them in
    ready: bool = False
    draining: bool = False
    fault: str | None = None  # why the server cannot answer at all, in words for the operator
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start something that outlives the connection it came over: the server does not end before it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def finish(self, seconds: float) -> None:
        """Wait for what was begun. Answers that take longer end with an error, which is recorded."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        self.give_up()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LAST_WORDS)

    def give_up(self) -> None:
        """End what is still in the making, because the server ends."""
        self.backend.fail_all(ApiError(503, "the server went down before the answer was complete", code="shutdown"))

    def is_known_host(self, header: str) -> bool:
        """Whether a Host header names this server. On loopback only its own names count: a foreign page whose name was
        pointed at this machine (DNS rebinding) cannot call it."""
        hosts = self.settings.hosts
        if "*" in hosts or (not hosts and not self.settings.is_local):
            return True
        name = header.rsplit(":", 1)[0] if not header.endswith("]") else header
        return name.lower() in {"localhost", "127.0.0.1", "[::1]", self.settings.host, *hosts}

    def check_model(self, name: str | None) -> str:
        """The name that answers carry. Raises 404 for a model that is not served."""
        if name is None:
            return self.backend.names[0]
        if name not in self.backend.names:
            raise ApiError(
                404, f"there is no model of that name here; served: {', '.join(self.backend.names)}",
                code="model_not_found", param="model",
            )  # fmt: skip
        return name

    async def admit(self, call: Call, jobs: Sequence[Job]) -> tuple[list[Job], dict[str, str]]:
        """Check jobs before anything is sent -> the jobs, ready for the engine, and the headers that say what did not
        apply."""
        if self.draining:
            raise ApiError(503, "the server is going down", code="draining", headers={"connection": "close"})
        if not self.ready or self.fault is not None:
            raise ApiError(503, "the model is not ready yet", code="not_ready", headers={"retry-after": "2"})
        if len(jobs) > self.settings.max_choices:
            raise ApiError(400, f"one request may ask for {self.settings.max_choices} answers, found {len(jobs)}")
        call.prompt_tokens = sum(len(prompt) for prompt in {job.prompt for job in jobs})
        self.backend.slots.check_room(len(jobs))
        await self.access.count_prompt(call)
        ready = await self.backend.prepare(lambda: [self.backend.checked(job) for job in jobs])
        notes = [note for job in jobs[:1] for note in job.notes]
        return ready, {NOT_APPLIED: ", ".join(notes)} if notes else {}

    async def run(
        self, call: Call, jobs: Sequence[Job], drafts: bool = False
    ) -> AsyncGenerator[tuple[int, StreamEvent], None]:
        """Events of several answers, each with the number of its job; the call and the metrics take note."""
        async with aclosing(woven([self.backend.events(job, drafts) for job in jobs])) as events:
            async for number, event in events:
                if isinstance(event, Committed) and event.text:
                    call.saw_text()
                elif isinstance(event, Finished):
                    call.finished(event.generation)
                    self.metrics.answer(event.generation, len(jobs[number].prompt))
                yield number, event

    def failed(self, call: Call, error: Exception) -> bytes:
        """The last event of a stream that cannot go on, in OpenAI's form."""
        answer = self.note_failure(call, error)
        return data_event(answer.openai())

    def note_failure(self, call: Call, error: Exception) -> ApiError:
        """What to tell the client; metrics and log take note."""
        answer = translated(error, self.backend.folder)
        call.outcome = answer.code or str(answer.status)
        if answer.status >= 500 and not isinstance(error, ApiError):
            self.backend.failures += 1
            log_failure(call, error)
        if answer.status in (401, 403, 413, 429, 503):
            self.metrics.refused.labels(call.outcome).inc()
        return answer

    async def start(self) -> None:
        """Warm the model up; then the server is ready."""
        try:
            await self.backend.prepare(self.backend.measure_digest)
            if self.settings.warm_up:
                await self.backend.warm_up()
            self.ready = True
            log_event("ready", model=self.backend.names[0], digest=self.backend.digest)
        except Exception as error:
            self.fault = f"{type(error).__name__} during the warm-up"
            log_failure(Call(route="warm-up"), error)

    async def watch(self, stall_seconds: float) -> None:
        """Restart an engine that has answers to make and takes no step: its thread died, or hangs. Health turns red,
        requests in flight end with an error that says so, and health turns green again after a warm-up."""
        steps, since = -1, time.monotonic()
        while True:
            await asyncio.sleep(min(1.0, stall_seconds / 4))
            now = self.backend.engine_stats()["steps"]
            if now != steps or not self.backend.is_busy:
                steps, since = now, time.monotonic()
            elif time.monotonic() - since > stall_seconds:
                await self._restart_engine()
                steps, since = -1, time.monotonic()

    async def _restart_engine(self) -> None:
        self.fault = "the engine takes no steps"
        log_event("engine_failed", running=self.backend.slots.running)
        self.backend.fail_all(
            ApiError(503, "the engine failed while it made this answer; ask again", code="engine_failed")
        )
        self.metrics.restarts.inc()
        try:
            self.backend.restart()
            await self.backend.warm_up()
            self.fault = None
            log_event("engine_restarted")
        except Exception as error:
            log_failure(Call(route="restart"), error)

    def stop(self) -> None:
        self.backend.close()
        self.access.close()
        if self.batches is not None:
            self.batches.close()


def service_of(request: Request) -> Service:
    return request.app.state.service

"""One response of /v1/responses while it is made: its events, in order, and its state at any time; and those kept."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from scumble.events import Committed, Finished, Generation, StreamEvent
from scumble.serve.backend import Job
from scumble.serve.call import Call
from scumble.serve.errors import ApiError
from scumble.serve.extension import generation_extension
from scumble.serve.service import Service

KEPT_SECONDS = 3600.0
KEPT_MOST = 1000


class ResponseRun:
    """Makes a response in a task of its own. `events` may be read by any number of readers, at any time."""

    task: asyncio.Task[None]

    def __init__(
        self,
        service: Service,
        job: Job,
        head: dict[str, Any],
        items: list[dict[str, Any]],
        before: list[dict[str, Any]],
    ) -> None:
        self.service = service
        self.job = job
        self.head = head
        self.items = items
        self.before = before
        self.status = "queued"
        self.completed_at: int | None = None  # seconds since 1970
        self.output: list[dict[str, Any]] = []
        self.generation: Generation | None = None
        self.error: ApiError | None = None
        self._events: list[dict[str, Any]] = []
        self._news = asyncio.Condition()

    def start(self, call: Call, after: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Begin. after: what to do when the run is over, whatever its outcome."""
        self.task = self.service.begin(self._run(call, after))

    def cancel_if_running(self) -> None:
        if not self.task.done():
            self.task.cancel()

    async def finished(self) -> None:
        await asyncio.wait([self.task])

    async def events(self, start: int) -> AsyncGenerator[dict[str, Any], None]:
        """Events from number `start` on, until the run is over."""
        number = start
        while True:
            async with self._news:
                while number >= len(self._events) and not self.task.done():
                    await self._news.wait()
                fresh = self._events[number:]
            for event in fresh:
                yield event
            number += len(fresh)
            if self.task.done() and number >= len(self._events):
                return

    def response(self) -> dict[str, Any]:
        """The response as it stands."""
        generation = self.generation
        incomplete = {"reason": "max_output_tokens"} if self.status == "incomplete" else None
        error = None if self.error is None else {"code": "server_error", "message": self.error.message}
        out = {
            **self.head, "status": self.status, "completed_at": self.completed_at, "output": self.output,
            "incomplete_details": incomplete,
            "error": error, "usage": None,
        }  # fmt: skip
        if generation is not None:
            tokens = len(generation.token_ids)
            out["usage"] = {
                "input_tokens": len(self.job.prompt),
                "input_tokens_details": {"cached_tokens": generation.cached_tokens, "cache_write_tokens": 0},
                "output_tokens": tokens,
                "output_tokens_details": {"reasoning_tokens": generation.thinking_tokens},
                "total_tokens": len(self.job.prompt) + tokens,
            }
            out["scumble"] = generation_extension(self.job, generation)
        return out

    # --- making it ------------------------------------------------------------------------------------------------

    async def _run(self, call: Call, after: Callable[[], Coroutine[Any, Any, None]] | None) -> None:
        try:
            if self.head["background"]:
                await self._tell("response.queued", response=self.response())
            self.status = "in_progress"
            await self._tell("response.created", response=self.response())
            await self._tell("response.in_progress", response=self.response())
            async with aclosing(self.service.run(call, [self.job], drafts=False)) as events:
                async for _, event in events:
                    await self._take(event)
            await self._close_item()
            assert self.generation is not None
            if not self.output:
                await self._open("message")
                await self._close_item()
            self.status = "completed" if self.generation.finish_reason == "stop" else "incomplete"
            self.completed_at = int(time.time()) if self.status == "completed" else None
            await self._tell(f"response.{self.status}", response=self.response())
        except asyncio.CancelledError:
            self.status, call.outcome = "cancelled", "cancelled"
            raise
        except Exception as error:
            self.error, self.status = self.service.note_failure(call, error), "failed"
            await self._tell("response.failed", response=self.response())
        finally:
            if after is not None:
                await asyncio.shield(self.service.begin(after()))
            asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(self._wake()))

    async def _wake(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def _tell(self, kind: str, **fields: Any) -> None:
        async with self._news:
            self._events.append({"type": kind, "sequence_number": len(self._events), **fields})
            self._news.notify_all()

    async def _take(self, event: StreamEvent) -> None:
        if isinstance(event, Committed):
            if event.thinking:
                await self._text("reasoning", event.thinking)
            if event.text:
                await self._text("message", event.text)
            for one in event.tool_calls:
                await self._call(one.id, one.name, json.dumps(dict(one.arguments), ensure_ascii=False))
        elif isinstance(event, Finished):
            self.generation = event.generation

    async def _text(self, kind: str, text: str) -> None:
        if not self.output or self.output[-1]["type"] != kind or self.output[-1]["status"] != "in_progress":
            await self._close_item()
            await self._open(kind)
        item, at = self.output[-1], len(self.output) - 1
        item["content"][0]["text"] += text
        place = {"item_id": item["id"], "output_index": at, "content_index": 0, "delta": text}
        if kind == "message":
            await self._tell("response.output_text.delta", **place, logprobs=[])
        else:
            await self._tell("response.reasoning_text.delta", **place)

    async def _open(self, kind: str) -> None:
        at = len(self.output)
        if kind == "message":
            item: dict[str, Any] = {"type": "message", "id": f"msg_{secrets.token_hex(12)}", "role": "assistant"}
            part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        else:
            item = {"type": "reasoning", "id": f"rs_{secrets.token_hex(12)}", "summary": []}
            part = {"type": "reasoning_text", "text": ""}
        shell = {**item, "status": "in_progress", "content": []}
        await self._tell("response.output_item.added", output_index=at, item=shell)
        self.output.append({**shell, "content": [part]})
        await self._tell(
            "response.content_part.added", item_id=item["id"], output_index=at, content_index=0, part=dict(part)
        )

    async def _close_item(self) -> None:
        if not self.output or self.output[-1]["status"] != "in_progress":
            return
        item, at = self.output[-1], len(self.output) - 1
        part, place = item["content"][0], {"item_id": item["id"], "output_index": at, "content_index": 0}
        if item["type"] == "message":
            await self._tell("response.output_text.done", **place, text=part["text"], logprobs=[])
        else:
            await self._tell("response.reasoning_text.done", **place, text=part["text"])
        await self._tell("response.content_part.done", **place, part=dict(part))
        item["status"] = "completed"
        await self._tell("response.output_item.done", output_index=at, item=dict(item))

    async def _call(self, call_id: str, name: str, arguments: str) -> None:
        await self._close_item()
        at = len(self.output)
        item = {
            "type": "function_call", "id": f"fc_{secrets.token_hex(12)}", "call_id": call_id, "name": name,
            "arguments": "", "status": "in_progress",
        }  # fmt: skip
        await self._tell("response.output_item.added", output_index=at, item=dict(item))
        place = {"item_id": item["id"], "output_index": at}
        await self._tell("response.function_call_arguments.delta", **place, delta=arguments)
        await self._tell("response.function_call_arguments.done", **place, arguments=arguments, name=name)
        item |= {"arguments": arguments, "status": "completed"}
        self.output.append(item)
        await self._tell("response.output_item.done", output_index=at, item=dict(item))


@dataclass(frozen=True)
class Kept:
    """A response and the name of the key that asked for it."""

    owner: str
    run: ResponseRun

    def conversation(self) -> list[dict[str, Any]]:
        """Everything said so far, as items, for a response that goes on from this one."""
        if self.run.status not in ("completed", "incomplete"):
            raise ApiError(409, f"the previous response is {self.run.status}", code="response_not_finished")
        return [*self.run.before, *self.run.items, *self.run.output]


class KeptResponses:
    """The last KEPT_MOST responses of the last KEPT_SECONDS."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[float, Kept]] = OrderedDict()

    def put(self, kept: Kept) -> None:
        self._forget()
        self._kept[kept.run.head["id"]] = (time.monotonic(), kept)
        while len(self._kept) > KEPT_MOST:
            self._kept.popitem(last=False)

    def get(self, response_id: str) -> Kept | None:
        self._forget()
        found = self._kept.get(response_id)
        return None if found is None else found[1]

    def drop(self, response_id: str) -> None:
        self._kept.pop(response_id, None)

    def _forget(self) -> None:
        while self._kept:
            at, kept = next(iter(self._kept.values()))
            if time.monotonic() - at < KEPT_SECONDS:
                return
            kept.run.cancel_if_running()
            self._kept.popitem(last=False)

"""Batches of this server: kept on disk, answered one after the other while there is room, taken up again after a kill.

A batch's state is one small file; its answers are appended to two files, of answers and of refusals, each line whole
and on the disk (batch.py). After a kill nothing is lost: what has a line is not asked again, and a request without a
seed has one made of its custom_id, so what is asked again gets the same text.

Requests of batches go through the whole app, in this process, on behalf of the key that made the batch: same checks,
limits, audit log and engine. They take at most half of the places, and none while anybody waits.

Of several processes over one folder the first has its batches; the others say so, and one takes over when it ends.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import secrets
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from scumble.errors import InvalidRequest
from scumble.serve.batch import BatchError, Output, Progress, read_batch, run_batch
from scumble.serve.call import Call
from scumble.serve.errors import ApiError
from scumble.serve.kept_files import DAY, KEPT_DAYS, FileStore, write_json
from scumble.serve.log import log_event, log_failure
from scumble.serve.slots import Slots

WINDOW = DAY  # seconds in which a batch is answered, or ends as it is
PAUSE = 30.0  # seconds after a disk was full
LOOK = 1.0  # seconds between looks whether another process has ended
MOST_LINES = 50_000
MOST_WAITING = 1000
OVER = ("completed", "failed", "cancelled", "expired")


@dataclass
class Batch:
    """status: validating → in_progress → finalizing → completed; or failed, expired, cancelling → cancelled. Times in
    seconds since 1970. answers_id, refusals_id: files that become visible when the batch is over."""

    id: str
    owner: str
    input_file_id: str
    endpoint: str
    metadata: dict[str, str] | None
    created_at: int
    answers_id: str
    refusals_id: str
    status: str = "validating"
    times: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: {"total": 0, "completed": 0, "failed": 0})
    errors: list[dict[str, Any]] = field(default_factory=list)
    output_file_id: str | None = None
    error_file_id: str | None = None

    @property
    def is_over(self) -> bool:
        return self.status in OVER

    @property
    def expires_at(self) -> int:
        return self.created_at + WINDOW

    def public(self) -> dict[str, Any]:
        names = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        return {
            "id": self.id, "object": "batch", "endpoint": self.endpoint, "input_file_id": self.input_file_id,
            "completion_window": "24h", "status": self.status, "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id, "created_at": self.created_at, "expires_at": self.expires_at,
            **{f"{name}_at": self.times.get(name) for name in names}, "request_counts": dict(self.counts),
            "metadata": self.metadata, "errors": {"object": "list", "data": self.errors} if self.errors else None,
        }  # fmt: skip


class Batches:
    """folder: of this server's state."""

    def __init__(self, folder: Path, files: FileStore, slots: Slots) -> None:
        self.files = files
        self._folder = folder / "batches"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._slots = slots
        self._task: asyncio.Task[None] | None = None  # answers self._current
        self._came = asyncio.Event()  # a batch, since the last look
        self._current = ""
        self._batches: dict[str, Batch] = {}
        self._lock = (self._folder / "lock").open("w")
        self._is_ours = False
        self._take_over()

    def _take_over(self) -> None:
        """Have the folder's batches, unless another process has them."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        self._is_ours = True
        oldest = time.time() - KEPT_DAYS * DAY
        for path in self._folder.glob("batch_*.json"):
            batch = Batch(**json.loads(path.read_bytes()))
            if batch.is_over and batch.created_at < oldest:
                path.unlink()
            else:
                self._batches[batch.id] = batch

    def close(self) -> None:
        self._is_ours = False
        self._lock.close()

    def check_ours(self) -> None:
        """Raises 503 while another process has this folder's batches."""
        if not self._is_ours:
            raise ApiError(
                503, "another server process has the batches of this folder; ask it, or try again when it has ended",
                code="batches_elsewhere", headers={"retry-after": "5"},
            )  # fmt: skip

    # --- what clients ask ------------------------------------------------------------------------------------------

    async def create(self, owner: str, input_file_id: str, endpoint: str, metadata: dict[str, str] | None) -> Batch:
        """A new batch, on disk before anybody hears of it."""
        if sum(not one.is_over for one in self._batches.values()) >= MOST_WAITING:
            raise ApiError(429, f"{MOST_WAITING} batches wait already; wait for one to end", code="too_many_batches",
                           headers={"retry-after": "60"})  # fmt: skip
        batch = Batch(
            f"batch_{secrets.token_hex(16)}", owner, input_file_id, endpoint, metadata, int(time.time()),
            self.files.new_id(), self.files.new_id(),
        )  # fmt: skip
        try:
            await asyncio.to_thread(self._save, batch)
        except BatchError as error:
            raise ApiError(507, str(error), code="disk") from None
        self._batches[batch.id] = batch
        self._came.set()
        return batch

    def get(self, batch_id: str, owner: str) -> Batch:
        """Raises 404 for a batch that is not there, or is somebody else's."""
        batch = self._batches.get(batch_id)
        if batch is None or batch.owner != owner:
            raise ApiError(404, "there is no such batch", code="batch_not_found", param="batch_id")
        return batch

    def all(self, owner: str) -> list[Batch]:
        """The latest first."""
        own = [one for one in self._batches.values() if one.owner == owner]
        return sorted(own, key=lambda one: (one.created_at, one.id), reverse=True)

    def cancel(self, batch: Batch) -> None:
        self._set(batch, "cancelling")
        if self._task is not None and not self._task.done() and self._current == batch.id:
            self._task.cancel()
        else:
            self._close(batch, "cancelled")

    def needs(self, file_id: str) -> bool:
        """Whether a batch that is not over reads this file."""
        return any(one.input_file_id == file_id and not one.is_over for one in self._batches.values())

    # --- the work --------------------------------------------------------------------------------------------------

    async def run(self, app: ASGIApp) -> None:
        """Answer batches, the oldest first, until this is cancelled."""
        while not self._is_ours:
            await asyncio.sleep(LOOK)
            self._take_over()
        while True:
            self._came.clear()
            waiting = [one for one in self._batches.values() if not one.is_over]
            if not waiting:
                await self._came.wait()
                continue
            batch = min(waiting, key=lambda one: (one.created_at, one.id))
            self._current, self._task = batch.id, asyncio.create_task(self._answer(app, batch))
            try:
                await self._task
            except asyncio.CancelledError:
                own = asyncio.current_task()
                if own is not None and own.cancelling():  # it is the server that ends, not the batch
                    self._task.cancel()
                    await asyncio.gather(self._task, return_exceptions=True)
                    raise
            except BatchError as error:  # a full disk
                log_event("batch_paused", batch=batch.id, error=type(error).__name__)
                await asyncio.sleep(PAUSE)
            except Exception as error:
                log_failure(Call(id=batch.id, route="/v1/batches"), error)
                batch.errors = [
                    {"code": "internal", "message": "the server failed at this batch", "param": None, "line": None}
                ]
                self._set(batch, "failed")

    async def _answer(self, app: ASGIApp, batch: Batch) -> None:
        if batch.status == "cancelling":
            return self._close(batch, "cancelled")
        try:
            path = self.files.path(batch.input_file_id)
            lines = await asyncio.to_thread(read_batch, path, "the file", batch.endpoint, MOST_LINES)
        except (InvalidRequest, OSError) as error:
            message = str(error) if isinstance(error, InvalidRequest) else "the file has been deleted"
            return self._fail(batch, "invalid_file", message)
        wanted = {line.custom_id for line in lines}
        answers = Output(self.files.path(batch.answers_id), wanted)
        refusals = Output(self.files.path(batch.refusals_id), wanted)

        def count(_: Progress | None = None) -> None:
            batch.counts = {"total": len(lines), "completed": len(answers.done), "failed": len(refusals.done)}

        end = "completed"
        try:
            self._set(batch, "in_progress")
            async with asyncio.timeout(max(0.0, batch.expires_at - time.time())):
                places = max(1, self._slots.max_running // 2)
                await run_batch(
                    app, lines, answers, places, count, refusals=refusals, owner=batch.owner, room=self._room
                )
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        except TimeoutError:
            end = "expired"
        except asyncio.CancelledError:
            if batch.status != "cancelling":
                raise
            end = "cancelled"
        finally:
            answers.close()
            refusals.close()
        count()  # an answer may have been written after the end was called
        self._close(batch, end)

    async def _room(self) -> None:
        """Wait until nobody else waits for a place, and one is free."""
        while self._slots.waiting or self._slots.running >= self._slots.max_running:
            await asyncio.sleep(0.02)

    def _close(self, batch: Batch, status: str) -> None:
        """Show the files that were written, and say that the batch is over; after a kill, once more."""
        if status == "completed":
            self._set(batch, "finalizing")
        for what, file_id in (("output", batch.answers_id), ("error", batch.refusals_id)):
            path = self.files.path(file_id)
            if path.exists() and path.stat().st_size:
                self.files.describe(file_id, batch.owner, f"{batch.id}_{what}.jsonl", "batch_output")
                setattr(batch, f"{what}_file_id", file_id)
            else:
                path.unlink(missing_ok=True)
        self._set(batch, status)
        log_event("batch", batch=batch.id, status=status, key=batch.owner, **batch.counts)

    def _fail(self, batch: Batch, code: str, message: str) -> None:
        batch.errors = [{"code": code, "message": message, "param": "input_file_id", "line": None}]
        self._set(batch, "failed")

    def _set(self, batch: Batch, status: str) -> None:
        batch.status = status
        batch.times.setdefault(status, int(time.time()))
        self._save(batch)

    def _save(self, batch: Batch) -> None:
        try:
            write_json(self._folder / f"{batch.id}.json", asdict(batch))
        except OSError:
            raise BatchError("the batch's state cannot be written; the disk may be full") from None

"""A file of requests to a file of answers, in OpenAI's batch format; resumable after a kill, nothing lost or doubled.

Each line of the input is {"custom_id": …, "method": "POST", "url": "/v1/…", "body": {…}}. The app answers it in this
process, through the same checks, slots and engine as over HTTP. Each answer is one line, appended whole and flushed to
the disk before the next request of its place begins. A run that was ended goes on: half a last line is cut off, and
what has a line already is not asked again. A request without a seed gets one made of its custom_id, so that a run that
was interrupted writes what an uninterrupted one would have written.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message

from scumble.errors import InvalidRequest, ScumbleError, shown

URLS = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/fim/completions",
    "/v1/edit/completions",
)  # fmt: skip
TRY_AGAIN = (429, 503)


class BatchError(ScumbleError):
    """The output cannot be written, or belongs to another run."""


@dataclass
class Progress:
    """total: requests in the input. done: those that have an answer, `before` of them from earlier runs."""

    total: int
    done: int = 0
    before: int = 0
    failed: int = 0
    tokens: int = 0
    started: float = field(default_factory=time.perf_counter)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(1e-9, time.perf_counter() - self.started)


@dataclass(frozen=True)
class BatchLine:
    """One checked line of the input."""

    custom_id: str
    url: str
    body: dict[str, Any]


def read_batch(path: Path, name: str = "", url: str | None = None, most: int | None = None) -> list[BatchLine]:
    """All requests of a file. Raises InvalidRequest, naming the line, before anything is computed.

    name: what errors call the file, instead of its path. url: the only one that requests may have. most: requests.
    """
    name = name or str(path)
    lines: list[BatchLine] = []
    seen: set[str] = set()
    try:
        with path.open(encoding="utf-8") as file:
            for number, raw in enumerate(file, 1):
                if raw.strip():
                    line = _checked(raw, f"{name}, line {number}")
                    if line.custom_id in seen:
                        raise InvalidRequest(f"{name}, line {number}: custom_id {shown(line.custom_id)} occurs twice")
                    if url is not None and line.url != url:
                        raise InvalidRequest(f"{name}, line {number}: url must be the batch's, {url}; found {line.url}")
                    if most is not None and len(lines) >= most:
                        raise InvalidRequest(f"{name} has more than {most} requests; cut it into several")
                    seen.add(line.custom_id)
                    lines.append(line)
    except UnicodeDecodeError:
        raise InvalidRequest(f"{name} is not UTF-8") from None
    if not lines:
        raise InvalidRequest(f"{name} holds no request; each line is an object with custom_id, method, url and body")
    return lines


def _checked(raw: str, where: str) -> BatchLine:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{where} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where} must be an object with custom_id, method, url and body")
    custom_id, url, body = value.get("custom_id"), value.get("url"), value.get("body")
    if not isinstance(custom_id, str) or not custom_id:
        raise InvalidRequest(f"{where}: custom_id must be a text, found {shown(custom_id)}")
    if value.get("method", "POST") != "POST" or url not in URLS:
        raise InvalidRequest(f"{where}: method and url must be POST and one of {', '.join(URLS)}, found {shown(url)}")
    if not isinstance(body, dict) or body.get("stream"):
        raise InvalidRequest(f"{where}: body must be an object, without stream")
    if url != "/v1/edit/completions" and body.get("seed") is None:
        body = {**body, "seed": int.from_bytes(hashlib.sha256(custom_id.encode()).digest()[:4], "big")}
    return BatchLine(custom_id, url, body)


class Output:
    """The file of answers. Opening it mends what a killed run left, and locks it against a second run."""

    def __init__(self, path: Path, wanted: set[str]) -> None:
        self._path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BatchError(f"{path} is being written by another run; wait for it, or name another file") from None
        except OSError as error:
            raise BatchError(f"{path} cannot be written: {error.strerror}") from None
        self._turn = asyncio.Lock()
        self.done: set[str] = set()  # the custom_id of every line that is there
        size = 0
        with path.open("rb") as file:
            for raw in file:
                if not raw.endswith(b"\n"):
                    break  # the line that a killed run was writing
                self.done.add(self._custom_id(raw, wanted))
                size += len(raw)
        os.ftruncate(self._file, size)
        self._size = size

    def _custom_id(self, raw: bytes, wanted: set[str]) -> str:
        try:
            found = json.loads(raw)["custom_id"]
        except (ValueError, KeyError, TypeError):
            found = None
        if found not in wanted:
            raise BatchError(f"{self._path} holds something else than answers to this input; name another file")
        return found

    async def write(self, record: dict[str, Any]) -> None:
        """One line, whole and on the disk, or none at all and a BatchError."""
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        async with self._turn:
            writing = asyncio.ensure_future(asyncio.to_thread(self._append, line, record["custom_id"]))
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:  # the line is written to its end before the file may be closed
                await asyncio.wait([writing])
                raise

    def _append(self, line: bytes, custom_id: str) -> None:
        try:
            if os.write(self._file, line) < len(line):
                raise OSError("short write")
            os.fdatasync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._size)
            raise BatchError(
                f"{self._path} cannot be written: {error.strerror or error}; free some space and run it again"
            ) from None
        self._size += len(line)
        self.done.add(custom_id)

    def close(self) -> None:
        os.close(self._file)


async def run_batch(
    app: ASGIApp,
    lines: list[BatchLine],
    output: Output,
    at_once: int,
    tell: Callable[[Progress], None],
    *,
    refusals: Output | None = None,
    owner: str | None = None,
    room: Callable[[], Awaitable[None]] | None = None,
) -> Progress:
    """Answer what has no answer yet, `at_once` requests at a time.

    refusals: where answers other than 200 go; None: to the output too. owner: the name of the key to ask with. room:
    waits until a request may begin.
    """
    refusals = refusals or output
    done = output.done | refusals.done
    left = [line for line in lines if line.custom_id not in done]
    progress = Progress(len(lines), len(lines) - len(left), len(lines) - len(left))
    tell(progress)
    queue = iter(left)

    async def worker() -> None:
        for line in queue:
            if room is not None:
                await room()
            status, body = await ask(app, line, owner)
            failed = status != 200
            await (refusals if failed else output).write({
                "id": f"batch_req_{hashlib.sha256(line.custom_id.encode()).hexdigest()[:24]}",
                "custom_id": line.custom_id,
                "response": {"status_code": status, "request_id": body.pop("request_id", None), "body": body},
                "error": None,
            })  # fmt: skip
            progress.done += 1
            progress.failed += failed
            usage = body.get("usage") or {}
            progress.tokens += usage.get("completion_tokens") or usage.get("output_tokens") or 0
            tell(progress)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(at_once, len(left))):
            group.create_task(worker())
    return progress


async def ask(app: ASGIApp, line: BatchLine, owner: str | None = None) -> tuple[int, dict[str, Any]]:
    """One request through the app, tried again where it is only busy -> status, and body."""
    for pause in _pauses():
        status, body = await _post(app, line.url, json.dumps(line.body, allow_nan=False).encode(), owner)
        if status not in TRY_AGAIN:
            return status, body
        await asyncio.sleep(pause)
    raise AssertionError("pauses do not end")


def _pauses() -> Iterator[float]:
    pause = 0.05
    while True:
        yield pause
        pause = min(2 * pause, 5.0)


async def _post(app: ASGIApp, url: str, body: bytes, owner: str | None) -> tuple[int, dict[str, Any]]:
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": url, "raw_path": url.encode(), "query_string": b"", "root_path": "", "client": None, "server": None,
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "scumble.owner": owner,
    }  # fmt: skip
    sent, status, parts = False, 0, []

    async def receive() -> Message:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    return status, json.loads(b"".join(parts))

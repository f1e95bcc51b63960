"""JSON lines on stderr: one a request, one a failure. No prompt, no answer, no key, no address, no path of a file."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import Any

from scumble.serve.call import Call

logger = logging.getLogger("scumble.serve")


class JsonLines(logging.Formatter):
    """A record's `fields` as one line of JSON; other loggers' records with their message, without arguments' values."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
        }
        line.update(getattr(record, "fields", None) or {"event": record.name, "message": str(record.msg)})
        return json.dumps(line, ensure_ascii=False)


def start_logging(level: str = "info") -> None:
    """Send this server's lines to stderr as JSON, and uvicorn's with them."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("scumble.serve", "uvicorn.error"):
        one = logging.getLogger(name)
        one.handlers, one.propagate = [handler], False
        one.setLevel(level.upper())
    logging.getLogger("uvicorn.error").setLevel("WARNING")
    logging.getLogger("uvicorn.access").disabled = True


def log_event(event: str, **fields: Any) -> None:
    logger.info(event, extra={"fields": {"event": event, **fields}})


def log_call(call: Call) -> None:
    """One finished request."""
    log_event(
        "request", id=call.id, method=call.method, route=call.route, status=call.status, outcome=call.outcome,
        key=call.key_name, prompt_tokens=call.prompt_tokens, completion_tokens=call.completion_tokens,
        passes=call.passes, ms=round(1000 * call.seconds, 1),
        first_text_ms=None if call.first_text is None else round(1000 * call.first_text, 1),
    )  # fmt: skip


def log_failure(call: Call, error: BaseException) -> None:
    """A fault of the server: where it happened, by file name and line. What the exception says may hold a prompt, so
    its message is left out."""
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}" for frame in frames[-8:]]
    fields = {"event": "failure", "id": call.id, "route": call.route, "error": type(error).__name__, "where": where}
    logger.error("failure", extra={"fields": fields})

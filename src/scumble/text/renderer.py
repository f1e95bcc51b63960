"""Rendering of chat templates in a process of their own, so that one can really be stopped.

A template is code that came with a download. jinja2's sandbox keeps it from Python's internals, but not from running
forever: a check between its statements never runs while `2 ** 10 ** 10` computes, and a thread cannot be killed. So a
child process renders (render_worker.py). It starts with the first render, is reused, and is killed when time is up.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scumble.errors import InvalidRequest, TemplateError

RENDER_SECONDS = 2.0
START_SECONDS = 60.0  # a busy machine may take long to start Python; this is no template's fault
MEMORY_BYTES = 2**30  # address space of the child, interpreter included (about 0.1 GiB)

_SCRIPT = Path(__file__).with_name("render_worker.py")
_KEPT_ENVIRONMENT = ("SYSTEMROOT", "TZ", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_ADVICE = {
    "syntax": "the chat template has a syntax error",
    "security": "the chat template tried to leave its sandbox",
    "template": "the chat template refused",
    "memory": "the chat template used too much memory and was stopped",
    "recursion": "the chat template calls itself too deeply and was stopped",
    "size": "the chat template wrote too much",
    "failure": "the chat template failed",
}


class TemplateRenderer:
    """Renders templates one at a time in one child process. Safe to share between threads and across a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: _Worker | None = None

    def render(self, template: str, variables: Mapping[str, Any], *, seconds: float = RENDER_SECONDS) -> str:
        """The rendered text.

        Args:
            template: jinja2 source.
            variables: what the template sees; JSON values only, and that is all that crosses to the child.
            seconds: the time allowed for this render, waiting for others and starting the child not counted.

        Raises:
            TemplateError: the template is wrong, refuses, reaches out of its sandbox, or needs too much time or memory.
            InvalidRequest: `variables` are no JSON values.
        """
        request = _to_line({"template": template, "variables": variables, "seconds": seconds})
        with self._lock:
            if self._worker is None or not self._worker.alive:
                if self._worker is not None:
                    self._worker.close()
                self._worker = _Worker()
            reply = self._worker.ask(request, seconds)
            if reply is None or reply.get("final"):
                self._worker.close()
                self._worker = None
        if reply is None:
            raise TemplateError(f"the chat template ran longer than {seconds:g} s, or crashed, and was stopped")
        if "text" in reply:
            return reply["text"]
        where = f" in line {reply['line']}" if reply.get("line") else ""
        reason = " ".join(str(reply["error"]).split())[:500]
        raise TemplateError(f"{_ADVICE[reply['kind']]}{where}: {reason}")

    def close(self) -> None:
        """End the child; the next render starts another."""
        with self._lock:
            if self._worker is not None:
                self._worker.close()
                self._worker = None

    def forget(self) -> None:
        """After a fork: the child belongs to the parent process; leave it alone."""
        self._lock = threading.Lock()
        self._worker = None


class _Worker:
    """One child process, ready to render."""

    def __init__(self) -> None:
        modules = [find_spec(name) for name in ("jinja2", "markupsafe")]
        paths = sorted({str(Path(spec.origin).parents[1]) for spec in modules if spec and spec.origin})
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ},
                start_new_session=True,  # Ctrl-C at the terminal is for the parent alone
            )
        except OSError as error:
            raise TemplateError(f"cannot start the process that renders chat templates: {error}") from error
        self._expired = False
        if self.ask(_to_line({"paths": paths, "memory": MEMORY_BYTES}), START_SECONDS) != {"ready": True}:
            self.close()
            code = self._process.returncode
            raise TemplateError(f"the process that renders chat templates ended at once (exit code {code})")

    @property
    def alive(self) -> bool:
        return not self._expired and self._process.poll() is None

    def ask(self, line: bytes, seconds: float) -> dict[str, Any] | None:
        """The reply, or None where none came in time. The child is then dead."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        clock = threading.Timer(seconds, self._expire)
        clock.daemon = True
        clock.start()
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
            reply = self._process.stdout.readline()
        except OSError:  # killed while we wrote
            reply = b""
        except BaseException:  # Ctrl-C: a late reply must not be taken for the next one
            self.close()
            raise
        finally:
            clock.cancel()
            clock.join()  # so that `alive` tells the truth if the clock struck just as the reply came
        return json.loads(reply) if reply.endswith(b"\n") else None

    def _expire(self) -> None:
        self._expired = True
        self._process.kill()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:  # unsent bytes of a request
                pass


def _to_line(message: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(message).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"messages, tools and template options must be JSON values: {error}") from error


SHARED = TemplateRenderer()
atexit.register(SHARED.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=SHARED.forget)

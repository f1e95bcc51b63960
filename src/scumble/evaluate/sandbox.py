"""Run a program that a model wrote, in a process that can do little and not for long.

The program runs under `python -I -S` (no site packages, no user settings), with an environment of three variables, in
an empty temporary folder, without file descriptors of ours, in a session of its own that is killed as a whole. Inside,
`sandbox_child.py` limits memory, CPU time and file size and, on Linux, forbids to start processes or threads, to open
sockets, to send signals (seccomp) and to write outside the folder (Landlock). `Verdict.guards` says what held.

This stops accidents: endless loops, memory, processes, output, an early exit. It is no prison for hostile code, which
can read what the user can read, and look for the nonce in its own process.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scumble.errors import InvalidRequest, ScumbleError

Result = Literal["passed", "failed", "timed out", "crashed"]

SECONDS = 3.0
MEMORY_BYTES = 512 * 2**20
CHILD = Path(__file__).with_name("sandbox_child.py")
_MOST = 4096  # bytes of a verdict; one write to a pipe of up to so many is never split


@dataclass(frozen=True)
class Verdict:
    """How a program ended.

    result: "passed": it ran to its end. "failed": it raised. "timed out". "crashed": it ended early, was killed by the
    system, or ran out of memory. detail: the exception's name, or how it crashed. guards: limits that were in force.
    """

    result: Result
    detail: str = ""
    guards: tuple[str, ...] = ()
    seconds: float = 0.0


def run_program(program: str, seconds: float = SECONDS, memory_bytes: int = MEMORY_BYTES) -> Verdict:
    """Run a program, its tests at its end, for at most `seconds` of wall time. Raises ScumbleError without POSIX."""
    if os.name != "posix":
        raise ScumbleError("running a model's programs needs Linux or macOS; leave the HumanEval tasks out (--task)")
    if not seconds > 0:
        raise InvalidRequest(f"a program's time limit must be above 0 seconds, found {seconds}")
    nonce = secrets.token_hex(16)
    request = {"program": program, "nonce": nonce, "seconds": seconds, "memory_bytes": memory_bytes}
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="scumble-") as folder, tempfile.TemporaryFile() as stdin:
        stdin.write(json.dumps(request).encode())
        stdin.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-X", "utf8", str(CHILD)],
            stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder, start_new_session=True,
            env={"PATH": "/usr/bin:/bin", "HOME": folder, "PYTHONHASHSEED": "0"},
        )  # fmt: skip
        try:
            said = _read(process, started + seconds)
        finally:
            _kill(process)
    return _verdict(said, process.returncode, nonce, time.monotonic() - started)


def _read(process: subprocess.Popen[bytes], deadline: float) -> bytes | None:
    """What the process writes, up to the first line's end, its own end, or too much of it; None: out of time."""
    assert process.stdout is not None
    said = b""
    while not said.endswith(b"\n") and len(said) < _MOST:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            return None
        part = os.read(process.stdout.fileno(), _MOST)
        if not part:  # it has ended, or is about to: let it, so that its exit code is its own
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            break
        said += part
    return said


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the whole session, whatever is left of it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing is left, or only what has ended already
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def _verdict(said: bytes | None, code: int, nonce: str, seconds: float) -> Verdict:
    if said is None:
        return Verdict("timed out", seconds=seconds)
    try:
        answer = json.loads(said)
        valid = answer["nonce"] == nonce
    except (ValueError, KeyError, TypeError, RecursionError):  # the program wrote there itself
        valid, answer = False, {}
    if not valid:
        return Verdict("crashed", f"signal {-code}" if code < 0 else "ended before its tests did", seconds=seconds)
    return Verdict(answer["outcome"], answer["detail"], tuple(answer["guards"]), seconds)

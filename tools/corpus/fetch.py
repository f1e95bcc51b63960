"""Wheels from the package index, through pip as a subprocess: pinned, checked, one outcome a package.

A batch of pins is one pip call into a fresh temporary folder; wheels that arrive whole are renamed into place. When a
batch fails, its packages are tried one by one, so that each failure has a name and a reason. Whatever is already there
is not fetched again, so an interrupted run goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Literal

from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from corpus.pins import Pin
from scumble.errors import DataError
from scumble.train.atomic import as_data_error

# One fixed target, so that the same pin means the same file everywhere. The wheels are only read, never installed.
TARGET = ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi", "abi3", "--abi", "none"]
for _tag in ("2014", "_2_17", "_2_27", "_2_28", "1", "_2_5", "_2_12"):
    TARGET += ["--platform", f"manylinux{_tag}_x86_64"]

Status = Literal[
    "fetched", "unreachable", "not found", "no wheel", "yanked", "timed out", "corrupt", "changed", "failed"
]  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Fetched:
    """The outcome for one pin; `wheel` is set only when status is "fetched", else `reason` says what happened."""

    pin: Pin
    status: Status
    wheel: Path | None = None
    sha256: str = ""
    reason: str = ""


Runner = Callable[[list[str], float], tuple[int, str]]
"""Runs a command line with a time limit in seconds; returns exit code and error text; raises TimeoutExpired."""


def run_pip(arguments: list[str], timeout: float) -> tuple[int, str]:
    """Run this interpreter's pip."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        timeout=timeout,
    )
    return done.returncode, done.stderr


def fetch_all(
    pins: Sequence[Pin],
    folder: Path,
    *,
    jobs: int = 4,
    batch: int = 6,
    timeout: float = 240.0,
    runner: Runner = run_pip,
    progress: Callable[[Fetched], None] = lambda result: None,
) -> dict[Pin, Fetched]:
    """Fetch every pin into `folder`; one result each. Raises DataError only for what stops all (a full disk)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.glob(".fetch-*"):
            shutil.rmtree(left_over, ignore_errors=True)
    except OSError as error:
        raise as_data_error(error, folder) from error
    results: dict[Pin, Fetched] = {}
    missing: list[Pin] = []
    present = _wheels_by_pin(folder)
    for pin in pins:
        wheel = present.get(_key(pin))
        if wheel is not None and (found := _accept(pin, wheel)).status == "fetched":
            results[pin] = found
            progress(found)
        else:
            if wheel is not None:
                wheel.unlink(missing_ok=True)
            missing.append(pin)
    source = _Index(folder, timeout, runner)
    groups = [missing[i : i + batch] for i in range(0, len(missing), batch)]
    pool = ThreadPoolExecutor(max_workers=max(1, jobs))
    try:
        for future in as_completed([pool.submit(source.fetch, group) for group in groups]):
            for found in future.result():
                results[found.pin] = found
                progress(found)
    except BaseException:
        source.stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return {pin: results[pin] for pin in pins}


class _Index:
    """Fetches groups of pins from several threads; gives up on an index that has been out of reach for a while."""

    def __init__(self, folder: Path, timeout: float, runner: Runner, patience: int = 4) -> None:
        self.stopped = threading.Event()
        self._folder, self._timeout, self._runner = folder, timeout, runner
        self._patience = patience
        self._failures = 0
        """Calls in a row that could not reach the index."""

    def fetch(self, pins: list[Pin]) -> list[Fetched]:
        """One result a pin. A failed group is tried again pin by pin, to name the one that failed."""
        if self.stopped.is_set() or self._failures >= self._patience:
            return [Fetched(pin, "unreachable", reason="not tried: the package index is out of reach") for pin in pins]
        status, reason = _download(pins, self._folder, self._timeout, self._runner)
        self._failures = self._failures + 1 if status == "unreachable" else 0
        if status is None:
            present = _wheels_by_pin(self._folder)
            return [_arrived(pin, present.get(_key(pin))) for pin in pins]
        if len(pins) == 1:
            return [Fetched(pins[0], status, reason=reason)]
        return [result for pin in pins for result in self.fetch([pin])]


def _arrived(pin: Pin, wheel: Path | None) -> Fetched:
    if wheel is None:
        return Fetched(pin, "failed", reason="pip reported success but left no wheel of this version")
    return _accept(pin, wheel)


def _download(pins: list[Pin], folder: Path, timeout: float, runner: Runner) -> tuple[Status | None, str]:
    """One pip call; (None, "") when all wheels are in place."""
    temporary = Path(tempfile.mkdtemp(prefix=".fetch-", dir=folder))
    arguments = [
        "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check",
        "--ignore-requires-python", "--retries", "3", "--timeout", "30", "--dest", str(temporary),
        *TARGET, *map(str, pins),
    ]  # fmt: skip
    try:
        code, errors = runner(arguments, timeout * len(pins))
        if "yanked version" in errors:
            return "yanked", "this version was withdrawn by its authors"
        if code != 0:
            return classify_failure(errors)
        for wheel in temporary.glob("*.whl"):
            os.replace(wheel, folder / wheel.name)
        return None, ""
    except subprocess.TimeoutExpired:
        return "timed out", f"no answer within {timeout:.0f} s"
    except OSError as error:
        raise as_data_error(error, folder) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def classify_failure(errors: str) -> tuple[Status, str]:
    """Name pip's failure in our own words: its text holds addresses and paths that do not belong in a manifest."""
    lower = errors.lower()
    if "no space left" in lower or "errno 28" in lower:
        raise DataError("the disk is full; free some space and run the same command again")
    if "no module named pip" in lower:
        raise DataError("this Python has no pip to fetch packages with; install it (python -m ensurepip) and run again")
    network = (
        r"connection (?:refused|reset|broken|error)|newconnectionerror|connectionerror|max retries|name resolution"
        r"|timed out|proxyerror|sslerror|no route to host|network is unreachable"
    )
    if re.search(network, lower):
        return "unreachable", "the package index could not be reached"
    if re.search(r"http error (?:403|429|5\d\d)|\b(?:403|429) client error|\b5\d\d server error", lower):
        return "unreachable", "the package index answered with an error"
    if "from versions: none" in lower:
        return "not found", "the index has no wheel of this package for the target"
    if "no matching distribution" in lower or "could not find a version" in lower:
        return "no wheel", "this version is gone or has no wheel for the target"
    if "hash" in lower or "badzipfile" in lower or "invalid wheel" in lower:
        return "corrupt", "the download did not match what the index promised"
    return "failed", "pip failed for another reason"


def _accept(pin: Pin, wheel: Path) -> Fetched:
    """Check a wheel that is in place: a whole zip archive, and the bytes the manifest names if there is one."""
    if not zipfile.is_zipfile(wheel):
        wheel.unlink(missing_ok=True)
        return Fetched(pin, "corrupt", reason="not a zip archive")
    sha256 = _sha256(wheel)
    if pin.sha256 is not None and pin.sha256 != sha256:
        wheel.unlink(missing_ok=True)
        return Fetched(pin, "changed", reason="the wheel differs from the one in the manifest")
    return Fetched(pin, "fetched", wheel, sha256)


def _sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _wheels_by_pin(folder: Path) -> dict[tuple[str, str], Path]:
    """(canonical name, canonical version) -> wheel, for the wheels in place."""
    out = {}
    for path in sorted(folder.glob("*.whl")):
        try:
            name, version, _, _ = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        out[str(name), str(version)] = path
    return out


def _key(pin: Pin) -> tuple[str, str]:
    try:
        return pin.name, str(Version(pin.version))
    except InvalidVersion:
        return pin.name, pin.version

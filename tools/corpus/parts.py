"""One package, one part: its extracted samples on disk, and a report that says they are finished.

A part is `parts/<name>-<version>.jsonl` plus `.report.json`, written in this order. A part whose report was made with
the same settings is not built again, so an interrupted build goes on with the first package that has none.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from corpus.extract import Sample, extract_wheel
from corpus.fetch import Fetched, Runner, fetch_all
from corpus.pins import Pin
from corpus.settings import CorpusSettings
from scumble.errors import DataError
from scumble.train.atomic import atomic_file, write_json

Say = Callable[[str], None]
CORRUPT = "corrupt archive"


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A finished package. `report["reason"]` is empty, or says why the package gave nothing."""

    pin: Pin
    samples: Path
    report: dict[str, Any]

    def load(self) -> list[Sample]:
        """The samples, in order. Raises DataError for a damaged file."""
        try:
            with open(self.samples, encoding="utf-8", newline="\n") as f:
                return [Sample(**json.loads(line)) for line in f]
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{self.samples.name} is damaged ({error}); delete it and run the same command") from error


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """Where and how parts are made: fields shared by every package."""

    out: Path
    settings: CorpusSettings
    jobs: int
    runner: Runner
    keep_wheels: bool
    say: Say


def make_parts(work: Work, pins: Sequence[Pin]) -> tuple[list[Part], list[dict[str, Any]]]:
    """Fetch and extract what is not there yet.

    Returns the parts that have samples, in the order of `pins`, and a row (name, version, reason) for each package
    that is left out.
    """
    done = {pin: part for pin in pins if (part := _finished(work, pin)) is not None}
    todo = [pin for pin in pins if pin not in done]
    work.say(f"{len(pins)} packages, {len(done)} already extracted")
    for part in done.values():
        _say_left_out(work, part)
    fetched = _fetch(work, todo)
    done |= _extract(work, [result for result in fetched if result.wheel is not None])
    parts = [done[pin] for pin in pins if pin in done]
    excluded = [_excluded(result.pin, result.status) for result in fetched if result.wheel is None]
    excluded += [_excluded(p.pin, p.report["reason"], p.report["licence"]) for p in parts if p.report["reason"]]
    return [part for part in parts if not part.report["reason"]], sorted(excluded, key=lambda row: row["name"])


def _fetch(work: Work, pins: list[Pin]) -> list[Fetched]:
    count = 0

    def report(result: Fetched) -> None:
        nonlocal count
        count += 1
        if result.status != "fetched":
            work.say(f"left out {result.pin}: {result.status}, {result.reason}")
        elif count % 50 == 0:
            work.say(f"fetched {count} of {len(pins)}")

    found = fetch_all(pins, work.out / "wheels", jobs=2 * work.jobs, runner=work.runner, progress=report)
    return list(found.values())


def _extract(work: Work, wheels: list[Fetched]) -> dict[Pin, Part]:
    parts: dict[Pin, Part] = {}
    pool = ProcessPoolExecutor(max(1, work.jobs), initializer=_die_with_parent, initargs=(os.getpid(),))
    try:
        futures = {pool.submit(_extract_part, work.out, result, work.settings): result for result in wheels}
        for number, future in enumerate(as_completed(futures), 1):
            part = future.result()
            parts[part.pin] = part
            _say_left_out(work, part)
            if number % 50 == 0:
                work.say(f"extracted {number} of {len(wheels)}")
            wheel = futures[future].wheel
            if wheel is not None and not work.keep_wheels:
                wheel.unlink(missing_ok=True)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return parts


def _die_with_parent(parent: int) -> None:
    """End this worker when its parent is gone: after a kill -9 it would wait for work for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _say_left_out(work: Work, part: Part) -> None:
    if part.report["reason"]:
        work.say(f"left out {part.pin}: {part.report['reason']} {part.report['licence']}".rstrip())


def _excluded(pin: Pin, reason: str, licence: str = "") -> dict[str, Any]:
    row = {"name": pin.name, "version": pin.version, "reason": reason}
    return {**row, "licence": licence} if licence else row


def _part_paths(out: Path, pin: Pin) -> tuple[Path, Path]:
    stem = f"{pin.name}-{pin.version}"
    return out / "parts" / f"{stem}.jsonl", out / "parts" / f"{stem}.report.json"


def _finished(work: Work, pin: Pin) -> Part | None:
    samples, report_path = _part_paths(work.out, pin)
    try:
        report = json.loads(report_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    current = isinstance(report, dict) and report.get("key") == work.settings.extraction_key()
    if current and report["reason"] == CORRUPT:  # the next download may be whole
        return None
    whole = current and (report["reason"] or _size(samples) == report["part_bytes"])
    if not whole or pin.sha256 not in (None, report["sha256"]):
        return None
    return Part(pin, samples, report)


def _size(path: Path) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return -1


def _extract_part(out: Path, fetched: Fetched, settings: CorpusSettings) -> Part:
    """Extract one wheel and put its part on disk: first the samples, then the report that declares them finished."""
    assert fetched.wheel is not None
    samples_path, report_path = _part_paths(out, fetched.pin)
    report: dict[str, Any] = {
        "key": settings.extraction_key(), "sha256": fetched.sha256, "wheel_bytes": _size(fetched.wheel),
        "licence": "", "reason": "", "source_files": 0, "dropped": {}, "part_bytes": -1,
    }  # fmt: skip
    try:
        found = extract_wheel(fetched.wheel, fetched.pin.name, settings)
    except DataError:
        fetched.wheel.unlink(missing_ok=True)  # so that the same command fetches it again
        report["reason"] = CORRUPT
    else:
        report |= {"licence": found.licence.name, "reason": found.licence.reason, "source_files": found.source_files}
        report["dropped"] = {reason: n for reason, n in sorted(found.dropped.items()) if n}
        if found.licence.permissive and not found.samples:
            report["reason"] = "no usable functions"
        if not report["reason"]:
            with atomic_file(samples_path) as f:
                f.write("".join(json.dumps(s.as_json(), ensure_ascii=False) + "\n" for s in found.samples).encode())
            report["part_bytes"] = _size(samples_path)
    write_json(report_path, report)
    return Part(fetched.pin, samples_path, report)

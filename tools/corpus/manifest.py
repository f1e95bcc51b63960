"""The record of a build: what went in, from which bytes, under which licence, and what was left out and why.

It holds no addresses and no paths, and it is itself a package list (for `build --packages manifest.json`):
the wheels' hashes are checked, so a rebuild starts from the same bytes or says which ones have changed.

On disk a package is one row of values; `columns` names them, and the last, `dropped`, counts by `drop_reasons`.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from scumble.errors import DataError
from scumble.train.atomic import atomic_file

FORMAT = 1
COLUMNS = ("name", "version", "licence", "sha256", "wheel_bytes", "split", "functions", "bytes", "dropped")


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest (packages as dictionaries) with one package a line, so that versions compare well. Atomic."""
    packages = manifest["packages"]
    reasons = sorted({reason for row in packages for reason in row["dropped"]})
    rows = [
        [*(row[column] for column in COLUMNS[:-1]), [row["dropped"].get(reason, 0) for reason in reasons]]
        for row in packages
    ]
    head = {key: value for key, value in manifest.items() if key not in ("packages", "excluded")}
    head |= {"columns": list(COLUMNS), "drop_reasons": reasons}
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    lines += [_listing("packages", rows), _listing("excluded", manifest["excluded"])]
    with atomic_file(path, "w") as f:
        f.write("{\n" + ",\n".join(lines) + "\n}\n")


def _listing(key: str, rows: list[Any]) -> str:
    inside = ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows)
    return f'"{key}": [\n{inside}\n]' if rows else f'"{key}": []'


def parse_manifest(text: str, source: str) -> dict[str, Any]:
    """The manifest as `write_manifest` was given it. Raises DataError, naming `source`."""
    try:
        raw = json.loads(text)
        if raw["format"] != FORMAT:
            raise DataError(f"{source} has manifest format {raw['format']}; this version reads {FORMAT}")
        reasons = raw.pop("drop_reasons")
        columns = raw.pop("columns")
        rows = [dict(zip(columns, row, strict=True)) for row in raw["packages"]]
        for row in rows:
            row["dropped"] = {r: n for r, n in zip(reasons, row["dropped"], strict=True) if n}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{source} looks like JSON but not like a corpus manifest: {error!r}") from error
    return {**raw, "packages": rows}


def totals(packages: list[dict[str, Any]], excluded: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over packages: functions and bytes a split, what was dropped, why packages were left out."""
    splits: dict[str, Counter[str]] = {}
    dropped: Counter[str] = Counter()
    for row in packages:
        count = splits.setdefault(row["split"], Counter())
        count.update({"packages": 1, "functions": row["functions"], "bytes": row["bytes"]})
        dropped.update(row["dropped"])
    return {
        "packages": len(packages),
        "functions": sum(row["functions"] for row in packages),
        "bytes": sum(row["bytes"] for row in packages),
        "splits": {name: dict(count) for name, count in sorted(splits.items())},
        "dropped": dict(sorted(dropped.items())),
        "excluded": dict(sorted(Counter(row["reason"] for row in excluded).items())),
        "licences": dict(Counter(row["licence"] for row in packages).most_common()),
    }

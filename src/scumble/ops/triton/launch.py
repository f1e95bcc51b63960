"""How a kernel is started, and with which tile sizes.

All launches go through `launch`. So `recorded` can list what would be launched, on tensors without memory
(device "meta") for a card that is not there: the compile check in tests/ops/triton/gate.py compiles exactly these.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

TABLE = Path(__file__).with_name("tiles.toml")

# Architectures with a column of their own in the table. 0 is Triton's interpreter on the CPU, for tests.
ARCHITECTURES = (80, 89, 90, 100, 120)
INTERPRETER = 0


@dataclass(frozen=True)
class Tiles:
    """Sizes of one program's tiles (constants of the kernel, by name), its warps, and its loads in flight."""

    warps: int
    stages: int
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __getitem__(self, name: str) -> int:
        return self.sizes[name]

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told. Contracting a·b + c into one rounding would give other bits than the reference,
        and its default is to change."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": False}


@dataclass(frozen=True)
class Launch:
    """One launch as `recorded` lists it: arguments and constants in the order of the kernel's parameters."""

    name: str
    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    tiles: Tiles


Table = Mapping[int, Mapping[str, Tiles]]
_recording: ContextVar[tuple[int, list[Launch], Table] | None] = ContextVar("recording", default=None)
_override: ContextVar[dict[str, Tiles] | None] = ContextVar("override", default=None)


@contextmanager
def recorded(arch: int, table: Table | None = None) -> Iterator[list[Launch]]:
    """Inside, launches are listed instead of made, with the tiles of architecture `arch` (80, 89, 90, 100, 120)."""
    launches: list[Launch] = []
    token = _recording.set((arch, launches, table or tile_table()))
    try:
        yield launches
    finally:
        _recording.reset(token)


@contextmanager
def with_tiles(tiles: dict[str, Tiles]) -> Iterator[None]:
    """Inside, these operations use other tiles than the table's: how benchmarks/gpu_day.py compares them."""
    token = _override.set(tiles)
    try:
        yield
    finally:
        _override.reset(token)


def launch(name: str, kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], **constants: Any) -> None:
    """Start `kernel` with the tiles that the table has for `name`. Their sizes are constants of the kernel, where the
    caller gives no others."""
    device = next(a.device for a in arguments if isinstance(a, torch.Tensor))
    tiles = tiles_for(name, device)
    constants = {**tiles.sizes, **constants}
    recording = _recording.get()
    if recording is not None:
        recording[1].append(Launch(name, kernel, grid, arguments, constants, tiles))
        return
    if 0 in grid:
        return
    if device.type == "cuda" and device.index not in (None, torch.cuda.current_device()):
        with torch.cuda.device(device):  # Triton launches on the current one
            return launch(name, kernel, grid, arguments, **constants)
    kernel[grid](*arguments, **constants, **tiles.options)


def tiles_for(name: str, device: torch.device) -> Tiles:
    """The tiles of an operation on this device."""
    override = _override.get()
    if override is not None and name in override:
        return override[name]
    recording = _recording.get()
    table = tile_table() if recording is None else recording[2]
    arch = architecture(device)
    if name not in table[arch]:
        raise KeyError(f"{TABLE.name} has no tiles for {name!r} on sm_{arch}")
    return table[arch][name]


def architecture(device: torch.device) -> int:
    """The column of the table that serves a device: 80, 89, 90, 100 or 120; 0 for the interpreter."""
    recording = _recording.get()
    if recording is not None:
        return recording[0]
    if device.type != "cuda":
        return INTERPRETER
    return column(torch.cuda.get_device_capability(device))


def column(capability: tuple[int, int]) -> int:
    """The table's column for a compute capability. 8.6 has 8.9's shared memory; 10.3 is compiled as 10.0 is."""
    major, minor = capability
    if major == 8:
        return 80 if minor == 0 else 89
    return {9: 90, 10: 100}.get(major, 120)


@functools.cache
def tile_table(path: Path = TABLE) -> dict[int, dict[str, Tiles]]:
    """tiles.toml: for every architecture the tiles of every operation that it has."""
    raw = tomllib.loads(path.read_text(encoding="utf-8"))
    table: dict[int, dict[str, Tiles]] = {arch: {} for arch in (INTERPRETER, *ARCHITECTURES)}
    for name, columns in raw["operations"].items():
        own = {(int(where),): entry for where, entry in columns.items() if where != "all"}
        rest = {(INTERPRETER, *ARCHITECTURES): columns["all"]} if "all" in columns else {}
        for archs, entry in (rest | own).items():  # an architecture's own line, wherever it stands, over "all"
            sizes = {key: value for key, value in entry.items() if key not in ("warps", "stages")}
            for arch in archs:
                table[arch][name] = Tiles(entry["warps"], entry["stages"], sizes)
    return table


def made_for(path: Path = TABLE) -> list[str]:
    """The minor versions of Triton that the table is for."""
    return tomllib.loads(path.read_text(encoding="utf-8"))["triton"]


def blocks(count: int, size: int) -> int:
    """How many tiles of `size` cover `count`."""
    return -(-count // size)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n: Triton's vectors come in no other length."""
    return 1 << max(0, n - 1).bit_length()

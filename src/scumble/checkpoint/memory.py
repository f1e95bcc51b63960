"""How much memory a model needs, how much there is, and a refusal before a load that would end in a killed process.

Counted are the weights in the format that they are loaded in, what converting them holds for a while, and the KV cache
of CONTEXT tokens. Weights that are mapped from a file count too: without room for them, every pass reads the disk.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from scumble.checkpoint.keep import in_four_bits, is_in_few_bits
from scumble.checkpoint.schemes import Entry
from scumble.config import LayerConfig, ModelConfig
from scumble.errors import CheckpointError, size
from scumble.formats.sizes import FORMATS, PLAIN_BYTES, weight_bytes
from scumble.model.rounding import CacheFormat, token_bytes
from scumble.ops import Ops

SWITCH = "SCUMBLE_MEMORY_CHECK"  # this environment variable set to 0: load in spite of everything
CONTEXT = 1000  # tokens
WITH_OFFSETS = ("Q4_1", "Q4_K")  # run with 6 bits a number instead of 4.5 (gguf/four_bits.py)
UNLIMITED = 2**60  # cgroup v1 says "no limit" with a number near 2**63


@dataclass(frozen=True)
class Available:
    """Bytes that this process may still take, and what sets that limit, for people."""

    bytes: int
    limit: str


def needed(
    config: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    form: str | torch.dtype,
    on_card: bool = False,
    packs: bool = False,
    cache: CacheFormat | None = None,
) -> int:
    """Bytes for a model of these weights in a format, ready to work on CONTEXT tokens.

    packs: the operations lay weights out anew; of those in bfloat16 only the table is then there twice. cache: the
    number format of keys and values; None: the model's."""
    name = str(form).removeprefix("torch.")
    if isinstance(form, torch.dtype) and name not in PLAIN_BYTES:
        bytes_each = torch.zeros(0, dtype=getattr(torch, name)).element_size()
        weights = sum(math.prod(shape) for shape in shapes.values()) * bytes_each
        return weights + kv_bytes(config, CONTEXT, bytes_each, cache)
    staging = 0 if name in PLAIN_BYTES else _largest_layer(shapes) * PLAIN_BYTES["bfloat16"]
    head = 2 * math.prod(shapes["embed_tokens.weight"]) if packs and name == "bfloat16" else 0
    kept = kv_bytes(config, CONTEXT, PLAIN_BYTES.get(name, 2), cache)
    return weight_bytes(shapes, name, on_card) + head + staging + kept


def needed_as_stored(config: ModelConfig, plan: Mapping[str, Entry], cache: CacheFormat | None = None) -> int:
    """The same of a folder in few bits whose weights run as they are stored (keep.py), on a CPU."""
    anew = [entry for name, entry in plan.items() if _is_kept(name, entry) and not in_four_bits(entry)]
    staging = 2 * max((math.prod(entry.shape) for entry in anew), default=0)  # one of them in bfloat16
    return weights_as_stored(plan) + staging + kv_bytes(config, CONTEXT, 2, cache)


def weights_as_stored(plan: Mapping[str, Entry]) -> int:
    """Bytes of the weights of such a folder, once it is loaded."""
    return sum(_bytes_as_stored(name, entry) for name, entry in plan.items())


def _is_kept(name: str, entry: Entry) -> bool:
    return "_proj" in name and is_in_few_bits(entry)


def _bytes_as_stored(name: str, entry: Entry) -> int:
    """Four bits as they are in the file, or with scales and offsets in float32; others in int8. The table is there in
    bfloat16 and has its copies in int8; what is stored in float becomes bfloat16."""
    if _is_kept(name, entry) and in_four_bits(entry):
        return entry.nbytes * 4 // 3 if entry.dtype in WITH_OFFSETS else entry.nbytes
    in_int8 = _is_kept(name, entry) or "embed_tokens" in name
    return weight_bytes({name: entry.shape}, "int8" if in_int8 else "bfloat16")


def _largest_layer(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Numbers of the largest layer: it is there in bfloat16 while it is quantized."""
    layers: dict[str, int] = defaultdict(int)
    for name, shape in shapes.items():
        if name.startswith("layers."):
            layers[name.split(".")[1]] += math.prod(shape)
    return max(layers.values())


def kv_bytes(
    config: ModelConfig,
    tokens: int,
    number: int,
    form: CacheFormat | None = None,
    layers: Sequence[LayerConfig] | None = None,
) -> int:
    """Bytes of the KV cache of one text of so many tokens, in all layers or in some. Sliding ones keep their window.

    number: bytes of a number of the model's dtype; form: of a cache in eight bits."""
    kept = min(tokens, config.sliding_window - 1)
    return sum(
        token_bytes(layer, number, form) * (kept if layer.is_sliding else tokens)
        for layer in (config.layers if layers is None else layers)
    )


def check_memory(
    config: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    form: str | torch.dtype,
    device: torch.device,
    folder: Path,
    ops: Ops,
    as_stored: Mapping[str, Entry] | None = None,
    cache: CacheFormat | None = None,
) -> None:
    """Raises CheckpointError where a model does not fit: what it needs, what there is, and which format would fit.

    ops: what will serve. as_stored: the folder's weights, where they run as they are stored. cache: the number format
    of keys and values; None: the model's."""
    if os.environ.get(SWITCH) == "0":
        return
    room = available(device)
    on_card = device.type != "cpu"
    wanted = needed(config, shapes, form, on_card, ops.packs, cache)
    if as_stored is not None and not on_card:
        wanted, form = needed_as_stored(config, as_stored, cache), "the formats that it is stored in"
    if room is None or wanted <= room.bytes:
        return
    forms = (*PLAIN_BYTES, *sorted(ops.formats)) if on_card else FORMATS
    sizes = {name: needed(config, shapes, name, on_card, ops.packs, cache) for name in forms}
    fitting = [f"{name} ({size(count)})" for name, count in sizes.items() if count <= room.bytes]
    if fitting:
        advice = f"would fit: dtype {' or '.join(fitting)}"
    else:
        least = min(sizes, key=lambda name: sizes[name])
        advice = f"no format would fit: {least}, the smallest, needs {size(sizes[least])}"
    raise CheckpointError(
        f"{folder}: needs {size(wanted)} of memory in {str(form).removeprefix('torch.')}, and {size(room.bytes)} are "
        f"available ({room.limit}); {advice}; to load it all the same set {SWITCH}=0"
    )


@contextmanager
def no_room_in_words(folder: Path, device: torch.device) -> Iterator[None]:
    """Inside, a load for which the memory does not suffice after all ends with a CheckpointError that says so: others
    may have taken it since the check, or the check was switched off."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        room = available(device)
        left = "" if room is None else f"; {size(room.bytes)} are available ({room.limit})"
        raise CheckpointError(
            f"{folder}: the memory does not suffice: {str(error).splitlines()[0]}{left}; "
            "end what else uses it, or load in fewer bits (dtype)"
        ) from error


def available(device: torch.device) -> Available | None:
    """What a process may still take on a device; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, unused
        return Available(free + reserved, f"free on {device}")
    return available_here() if device.type == "cpu" else None


def available_here(root: Path = Path("/")) -> Available | None:
    """The least of what the machine has free and what each control group above this process allows it. Linux only."""
    found = [Available(count, "free on this machine") for count in _machine(root)]
    found += [Available(count, "left by this process's memory limit") for count in _groups(root)]
    return min(found, key=lambda one: one.bytes, default=None)


def _machine(root: Path) -> list[int]:
    """MemAvailable, which counts file pages that can be dropped, in bytes."""
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return [int(line.split()[1]) * 1024]
    return []


def _groups(root: Path) -> list[int]:
    """What is left below each memory limit, of this process's control group and of those above it. Both versions:

    2: one tree; `0::/path` in /proc/self/cgroup. 1: a tree of its own for memory; `4:memory:/path`.
    """
    out = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            out += _walk(root / "sys/fs/cgroup", path, "memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            out += _walk(
                root / "sys/fs/cgroup/memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
            )
    return out


def _walk(top: Path, path: str, limit_file: str, used_file: str, prefix: str) -> list[int]:
    """Bytes left in each group from the top down to `path`, which is often not there in a container: the top is."""
    out = []
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts) + 1):
        group = top.joinpath(*parts[:depth])
        limit, used = _number(group / limit_file), _number(group / used_file)
        if limit is not None and used is not None and limit < UNLIMITED:
            out.append(max(0, limit - used + _droppable(group / "memory.stat", prefix)))
    return out


def _droppable(file: Path, prefix: str) -> int:
    """Bytes of file pages that count as used and that the system drops when memory is short."""
    names = (f"{prefix}inactive_file", f"{prefix}active_file")
    lines = [line.split() for line in _read(file).splitlines()]
    return sum(int(words[1]) for words in lines if len(words) == 2 and words[0] in names and words[1].isdigit())


def _number(file: Path) -> int | None:
    """The number in a file; None for no file, or "max"."""
    text = _read(file).strip()
    return int(text) if text.isdigit() else None


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, ValueError):
        return ""

"""Many stored tensors into the weights that the model has.

A quantized linear layer's tensors become one entry under the weight's key. Experts, which every such tool stores one
by one (`experts.7.gate_proj`), become the two fused weights again.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scumble.checkpoint.files import Stored
from scumble.checkpoint.names import VISION
from scumble.checkpoint.schemes.module import ACTIVATION_SCALES, PARTS, StoredModule, checked_module
from scumble.checkpoint.schemes.scheme import Quantization
from scumble.errors import CheckpointError

EXPERT = re.compile(r"(?P<experts>.+\.experts)\.(?P<index>\d{1,5})\.(?P<part>gate|up|down)_proj\.weight")
FLOAT_CODES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class FusedExperts:
    """Weights of all experts of a layer: `parts[e]` one above the other are [rows, columns] of expert e.

    Two parts an expert (gate, then up) or one (down).
    """

    key: str
    parts: tuple[tuple[Stored | StoredModule, ...], ...]

    @property
    def file(self) -> Path:
        return self.parts[0][0].file

    @property
    def shape(self) -> tuple[int, int, int]:
        rows = sum(part.shape[0] for part in self.parts[0])
        return len(self.parts), rows, self.parts[0][0].shape[1]

    @property
    def dtype(self) -> str:
        return self.parts[0][0].dtype

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for one in self.parts for part in one)


@dataclass(frozen=True)
class StackedExperts:
    """Gate and up matrices of all experts of a layer, each stored as one tensor [E, F, D]."""

    key: str
    gate: Stored
    up: Stored

    @property
    def file(self) -> Path:
        return self.gate.file

    @property
    def shape(self) -> tuple[int, int, int]:
        count, rows, columns = self.gate.shape
        return count, 2 * rows, columns

    @property
    def dtype(self) -> str:
        return self.gate.dtype

    @property
    def nbytes(self) -> int:
        return self.gate.nbytes + self.up.nbytes


Entry = Stored | StoredModule | FusedExperts | StackedExperts


@dataclass(frozen=True)
class Assembled:
    """entries: by key. unused: scales of activations and caches that nothing here needs. plain: modules that the
    configuration calls quantized but that are stored in a float format."""

    entries: dict[str, Entry]
    unused: tuple[str, ...] = ()
    plain: tuple[str, ...] = field(default=())


def assemble(tensors: Mapping[str, Stored], quantization: Quantization | None) -> Assembled:
    """Every weight of a folder by its key, quantized modules and experts put together and checked."""
    modules: dict[str, dict[str, Stored]] = defaultdict(dict)
    entries: dict[str, Entry] = {}
    if quantization is None:
        entries.update(tensors)
        _fuse_experts(entries)
        return Assembled(entries)
    unused = []
    for key, stored in tensors.items():
        module, _, part = key.rpartition(".")
        if key.startswith(VISION):
            entries[key] = stored
        elif part in ACTIVATION_SCALES:
            unused.append(key)
        elif part in PARTS:
            modules[module][part] = stored
        else:
            entries[key] = stored
    plain = []
    for name, parts in modules.items():
        scheme, weight = quantization.scheme(name), parts.get("weight")
        if set(parts) == {"weight"} and weight is not None and weight.dtype in FLOAT_CODES:
            entries[weight.key] = weight
            if scheme is not None and len(weight.shape) == 2:
                plain.append(name)
        elif scheme is None:
            raise CheckpointError(
                f"{quantization.file}: {name} is among the modules left as they are, but is stored in few bits "
                f"({', '.join(sorted(parts))}); the folder is inconsistent, get it again"
            )
        else:
            entries[name + ".weight"] = checked_module(name, scheme, parts)
    _fuse_experts(entries)
    return Assembled(entries, tuple(unused), tuple(plain))


def _fuse_experts(entries: dict[str, Entry]) -> None:
    layers: dict[str, dict[tuple[int, str], Stored | StoredModule]] = defaultdict(dict)
    for key in list(entries):
        found = EXPERT.fullmatch(key)
        entry = entries[key]
        if found is not None and isinstance(entry, (Stored, StoredModule)):
            layers[found["experts"]][int(found["index"]), found["part"]] = entry
            del entries[key]
    for name, parts in layers.items():
        count = 1 + max(index for index, _ in parts)
        missing = [
            f"{i}.{part}_proj" for i in range(count) for part in ("gate", "up", "down") if (i, part) not in parts
        ]
        file = next(iter(parts.values())).file
        if missing:
            raise CheckpointError(
                f"{file}: {name} lacks {len(missing)} of {3 * count} experts' weights: {', '.join(missing[:5])}"
            )
        for part in ("gate", "up", "down"):
            shapes = {parts[i, part].shape for i in range(count)}
            if len(shapes) > 1:
                raise CheckpointError(f"{file}: {name}: {part}_proj has shapes {sorted(shapes)}; all must be equal")
        if parts[0, "gate"].shape != parts[0, "up"].shape:
            raise CheckpointError(
                f"{file}: {name}: gate_proj {list(parts[0, 'gate'].shape)} and up_proj {list(parts[0, 'up'].shape)} "
                "must have one shape"
            )
        up = tuple((parts[i, "gate"], parts[i, "up"]) for i in range(count))
        down = tuple((parts[i, "down"],) for i in range(count))
        for weight, stored in (("gate_up_proj", up), ("down_proj", down)):
            key = f"{name}.{weight}"
            if key in entries:
                raise CheckpointError(f"{file}: {key} is stored twice, as one tensor and expert by expert")
            entries[key] = FusedExperts(key, stored)

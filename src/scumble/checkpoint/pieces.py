"""What the files of a converted checkpoint are made of: matrices to write in few bits and tensors to copy, planned from
the weights that a checkpoint has, and read one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from scumble.checkpoint.calibrate.watch import LayerInputs
from scumble.checkpoint.files import DTYPES, Stored, open_weights
from scumble.checkpoint.load import Contents
from scumble.checkpoint.names import DECODER, VISION, checkpoint_key
from scumble.checkpoint.pack import Packing
from scumble.checkpoint.raw import read_bytes, read_stored
from scumble.checkpoint.schemes import Entry, read_entry
from scumble.checkpoint.schemes.assemble import FusedExperts, StackedExperts
from scumble.checkpoint.stream import Slot, StreamedFile
from scumble.errors import CheckpointError
from scumble.formats.compensate import compensated

UNREACHED = "experts that calibration never reached"  # in the metadata of a layer's file
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Piece:
    """A matrix to write in few bits, or a tensor to copy (module None). rows: of experts, (expert, begin, end)."""

    slots: list[Slot]
    entry: Entry
    module: str | None = None
    rows: tuple[int, int, int] | None = None


def plan_files(found: Contents, how: Packing | None, kept: Sequence[str]) -> tuple[dict[str, list[Piece]], list[str]]:
    """What each file holds: a file a layer, one for what is outside the layers, one for the vision tower.

    Second: modules that stay as they are because their columns are not whole groups.
    """
    parts: dict[str, list[Piece]] = {}
    left: list[str] = []
    for name, entry in found.plan.items():
        part = ".".join(name.split(".")[:2]) if name.startswith("layers.") else "the rest"
        if how is None:
            pieces = [Piece([Slot(checkpoint_key(name), "BF16", entry.shape)], entry)]
        else:
            pieces = list(_pieces(name, entry, how, kept, left))
        parts.setdefault(part, []).extend(pieces)
    vision = [stored for key, stored in found.tensors.items() if key.startswith(VISION)]
    if vision:
        parts["vision"] = [Piece([Slot(one.key, one.dtype, one.shape)], one) for one in vision]
    order = sorted(parts, key=lambda part: (not part.startswith("layers."), len(part), part))
    return {part: parts[part] for part in order}, left


def _pieces(name: str, entry: Entry, how: Packing, kept: Sequence[str], left: list[str]) -> Iterator[Piece]:
    key = checkpoint_key(name)
    if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
        prefix, last = key.rsplit(".", 1)
        count, rows, columns = entry.shape[0], entry.shape[1], entry.shape[-1]
        members = ("gate_proj", "up_proj") if last == "gate_up_proj" else ("down_proj",)
        each = rows // len(members)
        for expert in range(count):
            for i, member in enumerate(members):
                module = f"{prefix}.{expert}.{member}"
                yield _piece(module, each, columns, entry, (expert, i * each, (i + 1) * each), how, kept, left)
        return
    if name.endswith("_proj.weight"):
        rows, columns = entry.shape[0], entry.shape[-1]
        yield _piece(key.removesuffix(".weight"), rows, columns, entry, None, how, kept, left)
        return
    yield Piece([Slot(key, _plain_code(entry), entry.shape)], entry)


def _piece(
    module: str,
    rows: int,
    columns: int,
    entry: Entry,
    part: tuple[int, int, int] | None,
    how: Packing,
    kept: Sequence[str],
    left: list[str],
) -> Piece:
    whole = columns % how.group == 0
    if whole and not any(word in module for word in kept):
        return Piece(how.slots(module, rows, columns), entry, module, part)
    if not whole:
        left.append(module)
    return Piece([Slot(f"{module}.weight", _plain_code(entry), (rows, columns))], entry, None, part)


def _plain_code(entry: Entry) -> str:
    return entry.dtype if isinstance(entry, Stored) and entry.dtype in DTYPES else "BF16"


def piece_count(piece: Piece) -> int:
    """Numbers of the weight that a piece holds."""
    rows = piece.entry.shape[0] if piece.rows is None else piece.rows[2] - piece.rows[1]
    out = rows if piece.entry.shape else 1
    for axis in piece.entry.shape[1 if piece.rows is None else 2 :]:
        out *= axis
    return out


def write_file(path: Path, pieces: list[Piece], how: Packing | None, inputs: LayerInputs | None = None) -> None:
    """inputs: what the layer's modules are given, which their rounding then goes by."""
    metadata = {UNREACHED: ",".join(map(str, inputs.unreached))} if inputs is not None and inputs.unreached else {}

    def source(piece: Piece) -> str | None:
        if piece.module is None or inputs is None:
            return None
        return inputs.source(piece.module.removeprefix(DECODER).split(".", 2)[2])

    with StreamedFile(path, [slot for piece in pieces for slot in piece.slots], metadata) as file:
        for given, together in groupby(pieces, source):
            if given is None or inputs is None:
                for piece in together:
                    _write_piece(file, piece, how)
                continue
            assert how is not None
            assert how.grid is not None
            assert how.store is not None
            weights = [_finite_matrix(piece) for piece in together]
            numbers, steps = compensated(torch.cat(weights), inputs.of(given), how.grid)
            rows = [len(weight) for weight in weights]
            for own_numbers, own_steps in zip(numbers.split(rows), steps.split(rows), strict=True):
                for tensor in how.store(own_numbers, own_steps):
                    file.write(tensor)


def _write_piece(file: StreamedFile, piece: Piece, how: Packing | None) -> None:
    entry = piece.entry
    if isinstance(entry, Stored) and entry.key == piece.slots[0].key and entry.dtype == piece.slots[0].dtype:
        file.write(read_stored(entry))  # as it is
    elif piece.module is None or how is None:
        dtype = DTYPES[piece.slots[0].dtype]
        whole = read_entry(entry, dtype, CPU) if piece.rows is None else _matrix(piece).to(dtype)
        file.write(whole.view(piece.slots[0].shape))
    else:
        for tensor in how.pack(_finite_matrix(piece)):
            file.write(tensor)


def _finite_matrix(piece: Piece) -> Tensor:
    weight = _matrix(piece)
    if not bool(torch.isfinite(weight.sum(dtype=torch.float32))):
        raise CheckpointError(
            f"{piece.entry.file}: {piece.module} must hold finite numbers, found NaN or infinity; "
            "get the checkpoint again"
        )
    return weight


def _matrix(piece: Piece) -> Tensor:
    """The piece's numbers in a float format; of experts only its rows are read."""
    entry = piece.entry
    if piece.rows is None:
        plain = isinstance(entry, Stored) and entry.dtype in DTYPES
        return read_entry(entry, DTYPES[entry.dtype] if plain else torch.float32, CPU)
    expert, begin, end = piece.rows
    if isinstance(entry, FusedExperts):
        at = 0
        for part in entry.parts[expert]:
            if at == begin:
                return read_entry(part, torch.float32, CPU)
            at += part.shape[0]
    if isinstance(entry, Stored) and entry.dtype in DTYPES:
        _, rows, columns = entry.shape
        dtype = DTYPES[entry.dtype]
        size = columns * dtype.itemsize
        data = read_bytes(entry, (expert * rows + begin) * size, (end - begin) * size)
        return data.view(dtype).view(end - begin, columns)
    if isinstance(entry, StackedExperts):
        one = entry.gate if begin == 0 else entry.up
        return read_entry(_single(one, expert), torch.float32, CPU)
    assert isinstance(entry, Stored)
    return read_entry(_single(entry, expert), torch.float32, CPU)[begin:end]


def _single(entry: Stored, index: int) -> Stored:
    """One matrix of several [E, rows, columns]."""
    nbytes = entry.nbytes // entry.shape[0]
    return Stored(entry.file, entry.key, entry.shape[1:], entry.dtype, entry.begin + index * nbytes, nbytes)


def unreached_experts(file: Path) -> tuple[int, ...]:
    """Experts that calibration never reached, as `write_file` noted them."""
    with open_weights(file) as handle:
        noted = (handle.metadata() or {}).get(UNREACHED, "")
    return tuple(map(int, noted.split(","))) if noted else ()

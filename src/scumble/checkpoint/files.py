"""The safetensors files of a checkpoint folder: found, checked, and read a tensor at a time through a memory map."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scumble.checkpoint.hub import find_checkpoint
from scumble.config import read_json
from scumble.errors import CheckpointError, InvalidRequest, shown
from scumble.reading import check_regular, is_there, open_regular, parse_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PIECE = 2**21  # numbers read at a time where tensors are converted or compared
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """One tensor in a file: its shape, number format (a safetensors code), and where its bytes begin and how many."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    begin: int
    nbytes: int


def find_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of the checkpoint by key, from `model.safetensors` or the shards that its index names."""
    out: dict[str, Stored] = {}
    for file in weight_files(folder):
        for key, stored in read_header(file).items():
            if key in out:
                raise CheckpointError(f"{folder}: {key} is stored twice, in {out[key].file.name} and in {file.name}")
            out[key] = stored
    return out


def as_folder(path: object) -> Path:
    """A path that a caller gave, or the folder of a hub id ("owner/name"), which is downloaded where it is missing.

    Raises InvalidRequest for what is no path, CheckpointError where an id cannot be had.
    """
    if not isinstance(path, (str, Path)):
        raise InvalidRequest(f"a checkpoint must be named by its path, a str or Path; found {shown(path)}")
    return find_checkpoint(path)


def check_folder(folder: Path) -> None:
    """Raises CheckpointError where there is no such folder, or it cannot be entered."""
    try:
        kind = folder.stat().st_mode
        listed = os.access(folder, os.R_OK | os.X_OK)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{folder}: no such folder; give a checkpoint folder with config.json and {WEIGHTS}"
        ) from None
    except (OSError, ValueError) as error:  # a loop of links, a name too long, no permission; a null character
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{shown(str(folder))}: cannot be opened: {reason}") from None
    if not stat.S_ISDIR(kind):
        if folder.suffix in PICKLES:
            raise CheckpointError(_refusal(folder))
        raise CheckpointError(f"{folder}: is a file; give the checkpoint folder that holds config.json and {WEIGHTS}")
    if not listed:
        raise CheckpointError(f"{folder}: may not be read by this user; change its permissions")


def weight_files(folder: Path) -> list[Path]:
    check_folder(folder)
    if is_there(folder / WEIGHTS):
        return [folder / WEIGHTS]
    if is_there(folder / INDEX):
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{folder / INDEX}: weight_map must be an object of key → file name, found none")
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            if Path(name).suffix in PICKLES:
                raise CheckpointError(_refusal(folder / name))
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise CheckpointError(
                    f"{folder / INDEX}: must name .safetensors files inside its own folder, found {shown(name)}"
                )
        missing = [name for name in names if not is_there(folder / name)]
        if missing:
            raise CheckpointError(
                f"{folder}: {len(missing)} of {len(names)} shards are missing: {', '.join(missing[:5])}"
            )
        return [folder / name for name in names]
    pickles = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise CheckpointError(_refusal(pickles[0]))
    raise CheckpointError(f"{folder}: holds neither {WEIGHTS} nor {INDEX}")


def _refusal(path: Path) -> str:
    return (
        f"{path}: pickle files are refused, because opening one can run any code; "
        f"convert it to {WEIGHTS} where you trust it"
    )


@contextmanager
def open_weights(file: Path) -> Iterator[safe_open]:
    """A memory-mapped safetensors file. The library checks header, offsets and length, so nothing overlaps or lacks."""
    try:
        check_regular(file)  # the library would wait for ever for the other end of a pipe
        with safe_open(str(file), framework="pt", device="cpu") as handle:
            yield handle
    except SafetensorError as error:
        size = file.stat().st_size if file.exists() else 0
        raise CheckpointError(
            f"{file}: not a whole safetensors file ({size} bytes): {error}; it may be truncated, fetch it again"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from None


def read_header(file: Path) -> dict[str, Stored]:
    """Names, shapes and formats of a file's tensors, after the library has checked that the file is whole."""
    with open_weights(file):
        pass
    try:
        with open_regular(file) as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = parse_json(stream.read(length))
    except (OSError, ValueError, struct.error) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from None
    out = {}
    for key, entry in header.items():
        if key != "__metadata__":
            begin, end = entry["data_offsets"]
            out[key] = Stored(file, key, tuple(entry["shape"]), entry["dtype"], 8 + length + begin, end - begin)
    return out


def read_mapped(file: Path, tensors: Sequence[Stored]) -> list[Tensor]:
    """Tensors of one file as they are stored, still mapped: pages of the file cache are the only copy."""
    with open_weights(file) as handle:
        return [handle.get_tensor(stored.key) for stored in tensors]


def read_converted(stored: Stored, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One tensor in another number format or on another device, read piece by piece through a small buffer."""
    out = torch.empty(stored.shape, dtype=dtype, device=device)
    begin = 0
    for piece in pieces(stored):
        out.view(-1)[begin : begin + piece.numel()].copy_(piece)
        begin += piece.numel()
    return out


def pieces(stored: Stored) -> Iterator[Tensor]:
    """The numbers of one tensor in order, PIECE of them at a time, in a buffer that the next piece overwrites.

    Not through a map: its pages would count as resident memory until the whole file is closed.
    """
    source = DTYPES[stored.dtype]
    buffer = bytearray(min(PIECE * source.itemsize, stored.nbytes))
    try:
        with stored.file.open("rb", buffering=0) as stream:
            stream.seek(stored.begin)
            for begin in range(0, stored.nbytes, PIECE * source.itemsize):
                view = memoryview(buffer)[: min(len(buffer), stored.nbytes - begin)]
                _fill(stream, view)
                yield torch.frombuffer(view, dtype=source)
    except OSError as error:
        raise CheckpointError(f"{stored.file}: cannot be read: {error}") from None


def _fill(stream: RawIOBase, view: memoryview) -> None:
    while view:
        count = stream.readinto(view)
        if not count:
            raise OSError("the file became shorter while it was being read")
        view = view[count:]

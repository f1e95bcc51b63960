"""Stored tensors as they lie in their files, number by number, in any format that safetensors has."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from scumble.checkpoint.files import Stored
from scumble.errors import CheckpointError

FORMATS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip


def format_of(stored: Stored) -> torch.dtype:
    if stored.dtype not in FORMATS:
        known = ", ".join(FORMATS)
        raise CheckpointError(f"{stored.file}: {stored.key} has number format {stored.dtype}; expected one of {known}")
    return FORMATS[stored.dtype]


def read_stored(stored: Stored) -> Tensor:
    """One tensor in its own format, in memory of its own."""
    return read_bytes(stored).view(format_of(stored)).view(stored.shape)


def read_bytes(stored: Stored, begin: int = 0, nbytes: int | None = None) -> Tensor:
    """Bytes of a tensor from its byte `begin` on, all or `nbytes` of them -> uint8 [nbytes]."""
    out = torch.empty(stored.nbytes - begin if nbytes is None else nbytes, dtype=torch.uint8)
    try:
        with stored.file.open("rb", buffering=0) as stream:
            stream.seek(stored.begin + begin)
            view = memoryview(out.numpy().data)
            while view:
                count = stream.readinto(view)
                if not count:
                    raise OSError("the file became shorter while it was being read")
                view = view[count:]
    except OSError as error:
        raise CheckpointError(f"{stored.file}: cannot be read: {error}") from None
    return out


def map_stored(stored: Stored) -> Tensor:
    """One tensor in its own format, mapped: a page is read when it is first used, and shared with other programs.

    Copied where the file does not align it for its format.
    """
    form = format_of(stored)
    if stored.begin % form.itemsize:
        return read_stored(stored)
    if not stored.nbytes:
        return torch.empty(stored.shape, dtype=form)
    numbers = torch.frombuffer(_map(stored.file), dtype=form, count=stored.nbytes // form.itemsize, offset=stored.begin)
    return numbers.view(stored.shape)


_maps: WeakValueDictionary[tuple[Path, int, int, int], mmap.mmap] = WeakValueDictionary()


def _map(file: Path) -> mmap.mmap:
    """The whole file, private: nothing that a program writes there reaches the file. Unmapped with its last tensor."""
    try:
        with file.open("rb") as stream:
            found = os.fstat(stream.fileno())
            key = (file, found.st_ino, found.st_mtime_ns, found.st_size)
            mapped = _maps.get(key)
            if mapped is None:
                mapped = _maps[key] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
            return mapped
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be mapped: {error}") from None

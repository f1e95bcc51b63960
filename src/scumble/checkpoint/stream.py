"""Safetensors files written one tensor at a time, so that only one has to be in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from scumble.checkpoint.raw import FORMATS

CODES = {dtype: code for code, dtype in FORMATS.items()}


@dataclass(frozen=True)
class Slot:
    """A tensor that a file will hold: its key, number format (a safetensors code) and shape."""

    key: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        count = 1
        for axis in self.shape:
            count *= axis
        return count * FORMATS[self.dtype].itemsize


class StreamedFile:
    """A file beside its place; the tensors have to be written in the order of `slots`. It is moved to its place when
    all are there, with its bytes on disk, and thrown away otherwise."""

    def __init__(self, path: Path, slots: Iterable[Slot], metadata: Mapping[str, str] | None = None):
        self.path, self.slots, self.metadata = path, list(slots), dict(metadata or {})
        self.temporary = path.with_name(f".{path.name}.part")
        self.next = 0

    def __enter__(self) -> StreamedFile:
        header: dict[str, object] = {"__metadata__": {"format": "pt", **self.metadata}}
        at = 0
        for slot in self.slots:
            header[slot.key] = {"dtype": slot.dtype, "shape": slot.shape, "data_offsets": [at, at + slot.nbytes]}
            at += slot.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 64)  # so that tensors begin where a cache line does, as far as their sizes allow
        self.stream = self.temporary.open("wb")
        self.stream.write(len(text).to_bytes(8, "little") + text)
        return self

    def write(self, tensor: Tensor) -> None:
        """The next slot's tensor."""
        slot = self.slots[self.next]
        assert (CODES[tensor.dtype], tuple(tensor.shape)) == (slot.dtype, slot.shape), slot.key
        self.stream.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
        self.next += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self.stream:
                if kind is None:
                    assert self.next == len(self.slots)
                    self.stream.flush()
                    os.fsync(self.stream.fileno())
            if kind is None:
                os.replace(self.temporary, self.path)
        finally:
            self.temporary.unlink(missing_ok=True)

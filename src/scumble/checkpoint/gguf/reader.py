"""The header of a GGUF file: its metadata, and where its tensors lie. Format: ggml's docs/gguf.md, versions 2 and 3.

    "GGUF", version u32, count of tensors u64, count of metadata entries u64,
    entries: key, type u32, value;  tensors: name, count of axes u32, axes u64, type u32, offset u64;  padding;  data

Every count, length and offset is compared with the bytes that are there before anything is read or allocated by it.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scumble.checkpoint.files import Stored
from scumble.checkpoint.gguf.blocks import BLOCKS
from scumble.errors import CheckpointError, shown

MAGIC = b"GGUF"
MOST_ENTRIES, MOST_TENSORS, MOST_AXES = 2**16, 2**20, 4
LONGEST_NAME = 2**12  # bytes of a key or a tensor's name
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class GGUF:
    """metadata: by key; arrays are lists. tensors: by name, with shapes as torch has them (rows first)."""

    file: Path
    metadata: dict[str, Any]
    tensors: dict[str, Stored]


def read_gguf(file: Path) -> GGUF:
    """The header of a GGUF file. Raises CheckpointError, in one line, for anything that is not one."""
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(file, data).read()
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise CheckpointError(f"{file}: cannot be read as GGUF: {error}") from None


class _Reader:
    """Reads forward through the mapped file; `at` is the next byte."""

    def __init__(self, file: Path, data: mmap.mmap):
        self.file, self.data, self.at = file, data, 0

    def read(self) -> GGUF:
        if self.take(4) != MAGIC:
            raise self.wrong("does not begin with 'GGUF'")
        version = self.number("<I")
        if version not in (2, 3):
            raise self.wrong(f"version must be 2 or 3, found {version}{' (big-endian?)' if version >> 16 else ''}")
        tensors = self.count(self.number("<Q"), "tensors", MOST_TENSORS, 24)
        entries = self.count(self.number("<Q"), "metadata entries", MOST_ENTRIES, 13)
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self.name("a metadata key")
            if key in metadata:
                raise self.wrong(f"metadata key {shown(key)} is there twice")
            metadata[key] = self.value(self.number("<I"), key)
        found = [self.tensor() for _ in range(tensors)]
        return GGUF(self.file, metadata, self._placed(found, metadata))

    def _placed(
        self, found: list[tuple[str, tuple[int, ...], int, int]], metadata: dict[str, Any]
    ) -> dict[str, Stored]:
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 2**16 or alignment & (alignment - 1):
            raise self.wrong(f"general.alignment must be a power of two in 1 … 65536, found {shown(alignment)}")
        begin = -(-self.at // alignment) * alignment
        out: dict[str, Stored] = {}
        for name, shape, kind, offset in found:
            block = BLOCKS[kind]
            numbers = 1
            for axis in shape:
                numbers *= axis
            nbytes = numbers // block.size * block.nbytes
            if offset % alignment:
                raise self.wrong(f"tensor {name}: offset {offset} is not a multiple of {alignment}")
            if begin + offset + nbytes > len(self.data):
                raise self.wrong(
                    f"tensor {name} ends at byte {begin + offset + nbytes}, but the file has {len(self.data)}; "
                    "it is truncated or damaged, get it again"
                )
            if name in out:
                raise self.wrong(f"tensor {name} is there twice")
            out[name] = Stored(self.file, name, shape, block.name, begin + offset, nbytes)
        last, end = "", 0
        for stored in sorted(out.values(), key=lambda one: one.begin):
            if stored.begin < end:
                raise self.wrong(f"tensors {last} and {stored.key} overlap")
            last, end = stored.key, stored.begin + stored.nbytes
        return out

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape (rows first), type, offset."""
        name = self.name("a tensor's name")
        axes = self.number("<I")
        if not 1 <= axes <= MOST_AXES:
            raise self.wrong(f"tensor {name} must have 1 … {MOST_AXES} axes, found {axes}")
        sizes = [self.number("<Q") for _ in range(axes)]
        kind, offset = self.number("<I"), self.number("<Q")
        if kind not in BLOCKS:
            known = ", ".join(block.name for block in BLOCKS.values())
            raise self.wrong(f"tensor {name} has type {kind}, which is not read; Scumble reads {known}")
        total = 1
        for size in sizes:
            total *= size
            if not 1 <= size < 2**48 or total >= 2**48:
                raise self.wrong(f"tensor {name} has an absurd shape {sizes}")
        if sizes[0] % BLOCKS[kind].size:
            block = BLOCKS[kind]
            raise self.wrong(f"tensor {name}: rows of {sizes[0]} are not whole blocks of {block.size} ({block.name})")
        return name, tuple(reversed(sizes)), kind, offset

    def value(self, kind: int, key: str) -> Any:
        if kind == STRING:
            return self.text(key)
        if kind != ARRAY:
            return self.number(self.scalar(kind, key))
        inner, length = self.number("<I"), self.number("<Q")
        if inner == ARRAY:
            raise self.wrong(f"metadata {key}: lists of lists are not read")
        if inner == STRING:
            self.count(length, f"texts in {key}", 2**32, 8)
            return [self.text(key) for _ in range(length)]
        form = self.scalar(inner, key)
        size = struct.calcsize(form)
        self.count(length, f"numbers in {key}", 2**32, size)
        return list(struct.unpack(f"<{length}{form[1]}", self.take(length * size)))

    def scalar(self, kind: int, key: str) -> str:
        if kind not in SCALARS:
            raise self.wrong(f"metadata {shown(key)} has unknown type {kind}")
        return SCALARS[kind]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def name(self, what: str) -> str:
        length = self.number("<Q")
        if not 1 <= length <= LONGEST_NAME:
            raise self.wrong(f"{what} must have 1 … {LONGEST_NAME} bytes, found {length}")
        return self.decoded(length, what)

    def text(self, what: str) -> str:
        return self.decoded(self.count(self.number("<Q"), f"bytes of a text in {what}", 2**32, 1), what)

    def decoded(self, length: int, what: str) -> str:
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self.wrong(f"{what}: a text is not UTF-8") from None

    def count(self, value: int, what: str, most: int, least_bytes: int) -> int:
        """`value` things of at least so many bytes each must fit into what is left of the file."""
        if value > most or value * least_bytes > len(self.data) - self.at:
            raise self.wrong(f"says that it has {value} {what}, more than fit into its {len(self.data)} bytes")
        return value

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise self.wrong(f"ends within its header (after {len(self.data)} bytes); it is truncated, get it again")
        self.at += size
        return self.data[self.at - size : self.at]

    def wrong(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.file}: {what}")

"""Texts as one flat file of token ids, memory-mapped.

`<name>.bin` holds uint16 ids, little-endian, documents one after another without special tokens;
`<name>.offsets` holds int64 positions: document i is ids[offsets[i] : offsets[i + 1]]. Documents were shuffled with a
seed when they were packed (tools/corpus/pack.py), so that reading in order is already a random order. `<name>.json`,
written last, makes the three complete: {"documents": …, "tokens": …}.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scumble.errors import DataError
from scumble.reading import check_regular, read_json_file


@dataclasses.dataclass(frozen=True, slots=True)
class Packed:
    """Token ids [tokens] and document offsets [documents + 1] int64. From files: uint16, read-only, memory-mapped."""

    ids: NDArray[np.integer]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[np.integer]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self.ids[self.offsets[index] : self.offsets[index + 1]]


def open_packed(target: Path) -> Packed:
    """Memory-map what `pack_jsonl` wrote. Raises DataError if it is missing or incomplete."""
    try:
        about = read_json_file(target.with_name(target.name + ".json"))
        ids = _map(target.with_name(target.name + ".bin"), "<u2")
        offsets = _map(target.with_name(target.name + ".offsets"), "<i8")
        documents, tokens = int(about["documents"]), int(about["tokens"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"packed tokens {target} are missing or damaged ({error}); pack them again") from error
    if len(offsets) != documents + 1 or len(ids) != tokens or not len(offsets) or int(offsets[-1]) != len(ids):
        raise DataError(f"packed tokens {target} are incomplete: {len(ids)} of {tokens} ids; pack them again")
    if offsets[0] != 0 or (np.diff(offsets) < 0).any():
        raise DataError(f"packed tokens {target} are damaged: their offsets must rise from 0; pack them again")
    return Packed(ids, offsets)


def _map(path: Path, dtype: str) -> NDArray:
    if check_regular(path) == 0:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, "r")

"""Any stored weight -> a float tensor, in bounded memory: one matrix at a time is there in float32."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from scumble.checkpoint.files import DTYPES, Stored, read_converted
from scumble.checkpoint.gguf.blocks import BY_NAME, decode
from scumble.checkpoint.raw import format_of, read_bytes, read_stored
from scumble.checkpoint.schemes.assemble import Entry, FusedExperts, StackedExperts
from scumble.checkpoint.schemes.module import StoredModule

MOST = 2**24  # numbers decoded at a time


def read_entry(entry: Entry, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The weight in `dtype` on `device`. Raises CheckpointError for a damaged file, or numbers that are not finite."""
    if isinstance(entry, Stored) and entry.dtype in DTYPES:
        return read_converted(entry, dtype, device)
    out = torch.empty(entry.shape, dtype=dtype, device=device)
    if isinstance(entry, Stored):
        _decode_into(entry, out.view(-1))
    elif isinstance(entry, StoredModule):
        out.copy_(entry.dequantized())
    elif isinstance(entry, StackedExperts):
        half = entry.gate.shape[1]
        out[:, :half] = read_entry(entry.gate, dtype, device)
        out[:, half:] = read_entry(entry.up, dtype, device)
    else:
        for expert, parts in enumerate(entry.parts):
            begin = 0
            for part in parts:
                out[expert, begin : begin + part.shape[0]] = read_entry(part, dtype, device)
                begin += part.shape[0]
    return out


def _decode_into(stored: Stored, out: Tensor) -> None:
    """A tensor in one of ggml's block formats, piece by piece."""
    if stored.dtype not in BY_NAME:
        format_of(stored)  # raises where there is no such format
        out.copy_(read_stored(stored).view(-1))
        return
    block = BY_NAME[stored.dtype]
    step = MOST // block.size * block.size
    for begin in range(0, math.prod(stored.shape), step):
        count = min(step, len(out) - begin)
        data = read_bytes(stored, begin // block.size * block.nbytes, count // block.size * block.nbytes)
        out[begin : begin + count] = decode(stored.dtype, data, (count,))


def scheme_counts(entries: Iterable[Entry]) -> tuple[str, ...]:
    """What quantized weights are stored as, the most frequent first: "384 × int4, groups of 32"."""
    counts: Counter[str] = Counter()
    for entry in entries:
        if isinstance(entry, Stored) and entry.dtype in BY_NAME and entry.dtype not in DTYPES:
            counts[entry.dtype] += 1
        counts.update(module.scheme.name for module in modules_of(entry))
    return tuple(f"{count} × {name}" for name, count in counts.most_common())


def modules_of(entry: Entry) -> Iterator[StoredModule]:
    """The quantized modules that a weight is made of."""
    if isinstance(entry, StoredModule):
        yield entry
    elif isinstance(entry, FusedExperts):
        for parts in entry.parts:
            yield from (part for part in parts if isinstance(part, StoredModule))

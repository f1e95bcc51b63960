"""Texts as one flat file of token ids, ready to be memory-mapped.

`<name>.bin` holds uint16 ids, little-endian, documents one after another without special tokens;
`<name>.offsets` holds int64 positions: document i is ids[offsets[i] : offsets[i + 1]]. Documents are shuffled with a
seed when packing, so that reading in order is already a random order. `<name>.json`, written last, makes it complete.
"""

from __future__ import annotations

import dataclasses
import json
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from scumble.errors import DataError
from scumble.reading import check_regular, read_json_file
from scumble.train.corpus.atomic import atomic_file, write_json

_BATCH = 5_000


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


def pack_jsonl(
    source: Path,
    tokenizer: Tokenizer,
    target: Path,
    *,
    seed: int = 0,
    keep: Callable[[dict[str, Any]], bool] = lambda record: True,
    progress: Callable[[int], None] = lambda n: None,
) -> int:
    """Tokenize the "text" of every line of `source` into `target`.bin and .offsets; returns the number of tokens.

    keep: which records to take. Special tokens are never produced, whatever the text says. Raises DataError.
    """
    if tokenizer.get_vocab_size() > 2**16:
        raise DataError(f"a vocabulary of {tokenizer.get_vocab_size()} does not fit 16 bits; at most 65536 tokens")
    texts = _read_texts(source, keep)
    order = np.random.default_rng(seed).permutation(len(texts))
    lengths = np.zeros(len(texts), np.int64)
    before = tokenizer.encode_special_tokens
    tokenizer.encode_special_tokens = True
    done_file = target.with_name(target.name + ".json")
    done_file.unlink(missing_ok=True)
    try:
        with atomic_file(target.with_name(target.name + ".bin")) as f:
            for start in range(0, len(texts), _BATCH):
                batch = [texts[i] for i in order[start : start + _BATCH]]
                encoded = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
                for row, encoding in enumerate(encoded):
                    ids = np.asarray(encoding.ids, "<u2")
                    lengths[start + row] = len(ids)
                    f.write(ids.tobytes())
                progress(start + len(batch))
    finally:
        tokenizer.encode_special_tokens = before
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype("<i8")
    with atomic_file(target.with_name(target.name + ".offsets")) as f:
        f.write(offsets.tobytes())
    total = int(offsets[-1])
    write_json(done_file, {"tokens": total, "documents": len(texts), "vocabulary": tokenizer.get_vocab_size()})
    return total


def is_method(text: str) -> bool:
    """Whether a function's source takes `self` or `cls` first."""
    return _METHOD.match(text) is not None


_METHOD = re.compile(r"(?:\s*@[^\n]*\n)*\s*(?:async\s+)?def\s+\w+\s*\(\s*(?:self|cls)\b")


def share_of(text: str) -> float:
    """A number in 0 … 1 that depends on the text alone, evenly spread over texts: for keeping a share of them."""
    return zlib.crc32(text.encode()) / 2**32


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


def _read_texts(source: Path, keep: Callable[[dict[str, Any]], bool]) -> Sequence[str]:
    try:
        with open(source, encoding="utf-8", newline="\n") as f:
            return [record["text"] for record in map(json.loads, f) if keep(record)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot read {source}: {error}; build it with `scumble data build`") from error

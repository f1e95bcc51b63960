"""Write texts as one flat file of token ids, in the form that scumble/train/packed.py reads."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from scumble.errors import DataError
from scumble.train.atomic import atomic_file, write_json

_BATCH = 5_000


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


def _read_texts(source: Path, keep: Callable[[dict[str, Any]], bool]) -> Sequence[str]:
    try:
        with open(source, encoding="utf-8", newline="\n") as f:
            return [record["text"] for record in map(json.loads, f) if keep(record)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot read {source}: {error}; build it with `python tools/corpus build`") from error

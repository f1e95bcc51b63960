"""Text to hashed n-grams, in numpy: the ground under near-duplicate search and decontamination.

Every token's 64-bit hash comes from BLAKE2, so results are the same on every machine and in every run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TOKENS = re.compile(r"\w+|[^\w\s]")
WORDS = re.compile(r"\w+")
_MIX = np.uint64(0x9E3779B97F4A7C15)

Hashes = NDArray[np.uint64]


class TokenHasher:
    """Splits text with a pattern and hashes each token once."""

    def __init__(self, pattern: re.Pattern[str], *, lower: bool = False) -> None:
        self._pattern = pattern
        self._lower = lower
        self._known: dict[str, int] = {}

    def __call__(self, text: str) -> Hashes:
        """Token hashes in order. [tokens]"""
        known = self._known
        tokens = self._pattern.findall(text.lower() if self._lower else text)
        for token in tokens:
            if token not in known:
                digest = hashlib.blake2b(token.encode("utf-8", "replace"), digest_size=8).digest()
                known[token] = int.from_bytes(digest, "little")
        return np.fromiter((known[token] for token in tokens), np.uint64, len(tokens))


def windows(texts: Sequence[Hashes], n: int) -> tuple[Hashes, NDArray[np.int64]]:
    """Hash of every window of n tokens of every text; a shorter text is padded and has one. Never across texts.

    Returns all windows, one text after another [windows], and where each text's begin [texts].
    """
    lengths = np.array([max(n, len(text)) for text in texts], np.int64)
    ends = np.cumsum(lengths)
    tokens = np.zeros(int(ends[-1]), np.uint64)
    for text, end, length in zip(texts, ends, lengths, strict=True):
        tokens[end - length : end - length + len(text)] = text
    count = len(tokens) - n + 1
    out = np.zeros(count, np.uint64)
    for offset in range(n):
        out = scramble(out * np.uint64(31) + tokens[offset : offset + count])
    inside = np.ones(len(tokens), np.bool_)
    for back in range(1, n):
        inside[ends - back] = False
    kept = lengths - n + 1
    return out[inside[:count]], np.cumsum(kept) - kept


def scramble(values: Hashes) -> Hashes:
    """A cheap bijection of 64 bits that spreads every input bit over the high ones."""
    values = (values ^ (values >> np.uint64(29))) * _MIX
    return values ^ (values >> np.uint64(32))

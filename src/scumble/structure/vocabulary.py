"""A vocabulary as a trie of byte strings, level by level, so that an automaton can read all tokens at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

LONGEST_TOKEN = 512  # bytes; a longer token is never used by a structure


@dataclass(frozen=True)
class Level:
    """Prefixes of one length. parent [n]: its prefix in the level before; byte [n]: the last byte."""

    parent: np.ndarray
    byte: np.ndarray
    tokens: np.ndarray  # ids of the tokens that end here …
    at: np.ndarray  # … and at which prefix


class Vocabulary:
    """What each id writes.

    Args:
        tokens: by id, the bytes that a token adds to the text; None or b"": it stands for no text (special, unused).
        size: how many ids the model has; ids beyond `tokens` write nothing.
    """

    def __init__(self, tokens: Sequence[bytes | None], size: int | None = None) -> None:
        self.tokens = list(tokens)
        self.size = max(len(self.tokens), size or 0)

    @cached_property
    def digest(self) -> str:
        """Names the vocabulary: 64 hexadecimal digits."""
        digest = hashlib.sha256(str(self.size).encode())
        for token in self.tokens:
            digest.update(b"-" if token is None else len(token).to_bytes(4, "little") + token)
        return digest.hexdigest()

    @cached_property
    def levels(self) -> list[Level]:
        """Prefixes of length 1, 2, …: first those of length 1."""
        pairs = sorted((t, id) for id, t in enumerate(self.tokens) if t and len(t) <= LONGEST_TOKEN)
        ids = np.array([id for _, id in pairs], np.int64)
        lengths = np.array([len(token) for token, _ in pairs], np.int64)
        flat = np.frombuffer(b"".join(token for token, _ in pairs), np.uint8)
        begin = np.concatenate([[0], np.cumsum(lengths)[:-1]]) if len(pairs) else np.empty(0, np.int64)
        found: list[Level] = []
        rows = np.arange(len(pairs))  # tokens of this length and more, sorted
        prefix = np.zeros(len(pairs), np.int64)  # each one's prefix in the level before
        for depth in range(int(lengths.max(initial=0))):
            keep = lengths[rows] > depth
            rows, prefix = rows[keep], prefix[keep]
            byte = flat[begin[rows] + depth]
            new = np.ones(len(rows), bool)
            new[1:] = (prefix[1:] != prefix[:-1]) | (byte[1:] != byte[:-1])
            node = np.cumsum(new) - 1
            ending = lengths[rows] == depth + 1
            found.append(
                Level(prefix[new].astype(np.int32), byte[new], ids[rows[ending]], node[ending].astype(np.int32))
            )
            prefix = node
        return found

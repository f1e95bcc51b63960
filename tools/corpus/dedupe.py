"""Every text once: exact copies by a hash that ignores white space, near copies by MinHash.

MinHash (Broder 1997): the chance that two sets have the same minimum under a random hash is their Jaccard similarity
|A and B| / |A or B|. A text is the set of its shingles (runs of 5 tokens); its signature is the minimum under 64 hash
functions. Signatures are cut into 16 bands of 4: texts that agree in a whole band become candidates (at similarity
0.8 they do with probability 1 - (1 - 0.8^4)^16 = 0.9998), and the share of equal minima estimates the similarity
(standard error 0.05 at 0.8). The earlier text stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from corpus.ngrams import TOKENS, Hashes, TokenHasher, scramble, windows

HASHES = 64
BANDS = 16
_BATCH = 2_000


def exact_duplicates(texts: Sequence[str]) -> NDArray[np.bool_]:
    """True where the same characters, white space aside, came earlier. [texts]"""
    seen: set[bytes] = set()
    out = np.zeros(len(texts), np.bool_)
    for i, text in enumerate(texts):
        key = hashlib.blake2b("".join(text.split()).encode("utf-8", "replace"), digest_size=16).digest()
        out[i] = key in seen
        seen.add(key)
    return out


def near_duplicates(
    texts: Sequence[str], threshold: float, shingle: int = 5, progress: Callable[[int], None] = lambda done: None
) -> NDArray[np.bool_]:
    """True where an earlier text is estimated to be at least `threshold` similar. [texts]"""
    if not len(texts):
        return np.zeros(0, np.bool_)
    return similar_to_earlier(signatures(texts, shingle, progress), threshold)


def signatures(
    texts: Sequence[str], shingle: int, progress: Callable[[int], None] = lambda done: None
) -> NDArray[np.uint32]:
    """MinHash signatures. [texts, HASHES]"""
    hasher = TokenHasher(TOKENS)
    out = np.empty((len(texts), HASHES), np.uint32)
    for start in range(0, len(texts), _BATCH):
        batch = [hasher(text) for text in texts[start : start + _BATCH]]
        out[start : start + len(batch)] = _minima(*windows(batch, shingle))
        progress(start + len(batch))
    return out


def _minima(values: Hashes, starts: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Per text the least value of each hash function over its shingles; all texts of a batch at once."""
    out = np.empty((len(starts), HASHES), np.uint32)
    for k in range(HASHES):
        seed = scramble(np.array([k + 1], np.uint64))
        hashed = (scramble(values ^ seed) >> np.uint64(32)).astype(np.uint32)
        out[:, k] = np.minimum.reduceat(hashed, starts)
    return out


def similar_to_earlier(signature: NDArray[np.uint32], threshold: float) -> NDArray[np.bool_]:
    """True for every row that some earlier row matches: shares a band with it and agrees in enough minima."""
    count = len(signature)
    drop = np.zeros(count, np.bool_)
    rows = HASHES // BANDS
    for band in range(BANDS):
        columns = signature[:, band * rows : (band + 1) * rows].astype(np.uint64)
        key = np.zeros(count, np.uint64)
        for column in columns.T:
            key = scramble(key ^ column) + column
        order = np.argsort(key, kind="stable")
        same = np.concatenate([[False], key[order][1:] == key[order][:-1]])
        # Inside a bucket (rows in order) each row is compared with the bucket's first and with its neighbour.
        first = np.maximum.accumulate(np.where(same, 0, np.arange(count)))
        later = np.flatnonzero(same)
        for earlier in (first[later], later - 1):
            a, b = order[earlier], order[later]
            for start in range(0, len(a), 100_000):
                part = slice(start, start + 100_000)
                agreement = (signature[a[part]] == signature[b[part]]).mean(1)
                drop[b[part][agreement >= threshold]] = True
    return drop

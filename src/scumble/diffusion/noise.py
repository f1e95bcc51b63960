"""Noise is an address, not a stream: every random number is a function of where it is used (seed, candidate, canvas,
pass, position, purpose).

So a request gives the same tokens alone or in any batch, on any device, after a restart. The function is Philox4x32
with ten rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), a counter-based generator:
the address is the counter, the seed is the key.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Noise(Protocol):
    """Where a generation's random numbers come from. Tests inject recorded noise through the same three calls."""

    def initial(self, canvas_index: int, length: int, vocab: int) -> Tensor:
        """Ids [length] int64, uniform over 0 … vocab-1, that a canvas starts from."""
        ...

    def uniform(self, canvas_index: int, pass_index: int, length: int) -> Tensor:
        """Uniforms [length] float64 in [0, 1), one a position, for the proposals of one pass."""
        ...

    def renoise(self, canvas_index: int, pass_index: int, length: int, vocab: int) -> Tensor:
        """Ids [length] int64, uniform over 0 … vocab-1, for the positions that were not accepted."""
        ...


_INITIAL, _PROPOSAL, _RENOISE = 0, 1, 2


class SeededNoise:
    """Noise from a seed in 0 … 2⁶⁴-1, of its own for each candidate of a request, numbered from 0."""

    def __init__(self, seed: int, candidate: int = 0):
        self.seed = seed
        self.candidate = candidate

    def initial(self, canvas_index: int, length: int, vocab: int) -> Tensor:
        return self._ids(_INITIAL, canvas_index, 0, length, vocab)

    def uniform(self, canvas_index: int, pass_index: int, length: int) -> Tensor:
        return torch.from_numpy(self._uniforms(_PROPOSAL, canvas_index, pass_index, length))

    def renoise(self, canvas_index: int, pass_index: int, length: int, vocab: int) -> Tensor:
        return self._ids(_RENOISE, canvas_index, pass_index, length, vocab)

    def _ids(self, purpose: int, canvas_index: int, pass_index: int, length: int, vocab: int) -> Tensor:
        # floor(u · vocab) with 53 random bits: for vocab = 2¹⁸ no id is favoured by more than one part in 2³⁵.
        uniforms = self._uniforms(purpose, canvas_index, pass_index, length)
        return torch.from_numpy((uniforms * vocab).astype(np.int64))

    def _uniforms(self, purpose: int, canvas_index: int, pass_index: int, length: int) -> np.ndarray:
        counter = np.zeros((4, length), dtype=np.uint64)
        counter[0] = np.arange(length, dtype=np.uint64)
        counter[1], counter[2], counter[3] = pass_index, canvas_index, purpose + 4 * self.candidate
        words = philox(counter, self.seed & 0xFFFFFFFF, self.seed >> 32)
        bits = (words[0] << np.uint64(21)) ^ (words[1] >> np.uint64(11))  # 32 + 21 = 53 bits
        return bits.astype(np.float64) * 2.0**-53


def philox(counter: np.ndarray, key_low: int, key_high: int) -> np.ndarray:
    """Philox4x32-10: counter [4, n] of 32-bit words held in uint64, two 32-bit key words -> random words [4, n]."""
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1, c2, c3 = (counter[i].astype(np.uint64) & mask for i in range(4))
    for _ in range(10):
        left, right = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)  # 32 x 32 -> 64 bits, no overflow
        c0, c1, c2, c3 = (
            (right >> shift) ^ c1 ^ np.uint64(key_low),
            right & mask,
            (left >> shift) ^ c3 ^ np.uint64(key_high),
            left & mask,
        )
        key_low, key_high = (key_low + 0x9E3779B9) & 0xFFFFFFFF, (key_high + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3))

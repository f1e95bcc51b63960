"""Noise is an address, not a stream: every random number is a function of where it is used (seed, candidate, canvas,
pass, position, purpose).

So a request gives the same tokens alone or in any batch, on any device, after a restart. The function is Philox4x32
with ten rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), a counter-based generator:
the address is the counter, the seed is the key. It is written in integer operations of torch, so that the numbers of
all canvases of a pass are made together, on the device that uses them. Operations may have a kernel for them that makes
the same numbers (`Ops.noise`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

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


@dataclass(frozen=True)
class SeededNoise:
    """Noise from a seed in 0 … 2⁶⁴-1, of its own for each candidate of a request, numbered from 0."""

    seed: int
    candidate: int = 0

    def initial(self, canvas_index: int, length: int, vocab: int) -> Tensor:
        return _ids(self._uniforms(_INITIAL, canvas_index, 0, length), vocab)

    def uniform(self, canvas_index: int, pass_index: int, length: int) -> Tensor:
        return self._uniforms(_PROPOSAL, canvas_index, pass_index, length)

    def renoise(self, canvas_index: int, pass_index: int, length: int, vocab: int) -> Tensor:
        return _ids(self._uniforms(_RENOISE, canvas_index, pass_index, length), vocab)

    def first_uniforms(self, canvas_index: int, count: int) -> Tensor:
        """Of `count` canvases from canvas_index on: the proposal's uniform [count] at pass 0, position 0."""
        address = Address.of([self] * count, range(canvas_index, canvas_index + count), "cpu")
        return _uniforms((_PROPOSAL,), address, torch.zeros(count, dtype=torch.int64), 1)[0, :, 0]

    def _uniforms(self, purpose: int, canvas_index: int, pass_index: int, length: int) -> Tensor:
        address = Address.of([self], [canvas_index], "cpu")
        return _uniforms((purpose,), address, torch.tensor([pass_index]), length)[0, 0]


@dataclass(frozen=True)
class Address:
    """What all passes of S canvases have in common; int64. words [S, 4]: low and high word of the seed, candidate,
    canvas. keys [10, 2, S, 1], made of the seeds."""

    words: Tensor
    keys: Tensor

    @classmethod
    def of(cls, noises: Sequence[SeededNoise], canvases: Sequence[int], device: torch.device | str) -> Address:
        rows = [
            (noise.seed & 0xFFFFFFFF, noise.seed >> 32, noise.candidate, canvas)
            for noise, canvas in zip(noises, canvases, strict=True)
        ]
        words = torch.tensor(rows, dtype=torch.int64, device=device)
        return cls(words, round_keys(words[:, :1], words[:, 1:2]))

    def draw(self, pass_index: Tensor, length: int, vocab: int) -> tuple[Tensor, Tensor]:
        """For pass pass_index [S]: uniforms [S, length] float64 for the proposals, ids [S, length] to renoise."""
        proposal, renoise = _uniforms((_PROPOSAL, _RENOISE), self, pass_index, length)
        return proposal, _ids(renoise, vocab)


def _uniforms(purposes: tuple[int, ...], address: Address, pass_index: Tensor, length: int) -> Tensor:
    """-> [purposes, S, length] float64 in [0, 1)."""
    device = pass_index.device
    purpose = _constant(purposes, device)[:, None, None]
    counter = torch.broadcast_tensors(
        torch.arange(length, device=device), pass_index[:, None], address.words[:, 3:],
        purpose + 4 * address.words[:, 2:3],
    )  # fmt: skip
    words = philox(torch.stack(counter), address.keys[:, :, None])
    bits = (words[0] << 21) ^ (words[1] >> 11)  # 32 + 21 = 53 bits
    return bits.double() * 2.0**-53


def _ids(uniforms: Tensor, vocab: int) -> Tensor:
    # floor(u · vocab) with 53 random bits: for vocab = 2¹⁸ no id is favoured by more than one part in 2³⁵.
    return (uniforms * vocab).long()


@lru_cache(maxsize=64)
def _constant(values: tuple[int, ...], device: torch.device) -> Tensor:
    """Kept on the device, so that a pass copies nothing there."""
    return torch.tensor(values, device=device)


_WORD, _ROUNDS = 0xFFFFFFFF, 10


def philox(counter: Tensor, keys: Tensor) -> Tensor:
    """Philox4x32-10: counter [4, …] of 32-bit words held in int64, keys from `round_keys` -> words [4, …].

    A product of two words wraps around in int64; its bits are right all the same, which is all that is read of it.
    In every round words 0 and 2 change places, and 1 and 3. Here they stay, and in every other round (0, 2, …) the
    factors' and keys' order changes instead.
    """
    even, odd = counter[0::2], counter[1::2]  # words 0, 2 and 1, 3
    factor = _constant((0xD2511F53, 0xCD9E8D57), counter.device).view(2, *[1] * (counter.ndim - 1))
    for key in keys:
        product = even * factor
        even, odd, factor = ((product >> 32) ^ odd.flip(0) ^ key) & _WORD, product & _WORD, factor.flip(0)
    return torch.stack((even[0], odd[0], even[1], odd[1]))


def round_keys(low: Tensor, high: Tensor) -> Tensor:
    """The two 32-bit key words […] of every round [10, 2, …], in the order in which `philox` takes them."""
    step = _constant((0x9E3779B9, 0xBB67AE85), low.device).view(2, *[1] * low.ndim)
    first = torch.stack((low, high))
    keys = [(first + number * step) & _WORD for number in range(_ROUNDS)]
    return torch.stack([key.flip(0) if number % 2 == 0 else key for number, key in enumerate(keys)])

"""A canvas is a value: the block of tokens being denoised, with what is fixed in it. Rules take one and return one.

Rules work on S canvases at a time, [S, L]. One that is shorter than L is pinned behind its end: a pinned position
costs nothing, changes nothing and is never asked for its opinion, so no rule needs to know of lengths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scumble.diffusion.noise import Noise


@dataclass(frozen=True)
class Canvas:
    """S canvases. ids [S, L] int64; pinned [S, L] bool: positions that may not change."""

    ids: Tensor
    pinned: Tensor

    def replace(self, ids: Tensor) -> Canvas:
        """The same canvases with other ids, except where they are pinned."""
        return dataclasses.replace(self, ids=self.keep_pinned(ids))

    def keep_pinned(self, ids: Tensor) -> Tensor:
        return torch.where(self.pinned, self.ids, ids)


@dataclass(frozen=True)
class Proposal:
    """What one pass proposes at every position [S, L]: argmax and sample (ids), entropy (nats, of the tempered
    softmax). Entropies of pinned positions are 0."""

    argmax: Tensor
    sample: Tensor
    entropy: Tensor


def start_canvas(
    noise: Noise,
    index: int,
    length: int,
    vocab: int,
    draft: Sequence[int] = (),
    pinned: Mapping[int, int] | None = None,
) -> Canvas:
    """One canvas [1, L]: uniform noise, overwritten by a given draft (m ≤ L ids, from position 0) and by pinned ids
    (position -> id). index: which canvas of the answer, from 0; noise depends on it."""
    ids = torch.as_tensor(noise.initial(index, length, vocab), dtype=torch.int64).clone()
    if draft:
        ids[: len(draft)] = torch.tensor(draft)
    fixed = torch.zeros(length, dtype=torch.bool)
    for position, token in (pinned or {}).items():
        ids[position], fixed[position] = token, True
    return Canvas(ids[None], fixed[None])


def exact(nats: Tensor) -> Tensor:
    """Entropies as whole multiples of 2⁻⁴⁰ nat, int64. Sums of whole numbers do not depend on their order, so a
    decision is the same whatever else is in the batch."""
    return (nats.double() * 2.0**40).round().long()


def finite(nats: Tensor) -> Tensor:
    """Whether entropies are numbers. One comparison: NaN is below nothing, and an entropy is never -infinity."""
    return nats < float("inf")

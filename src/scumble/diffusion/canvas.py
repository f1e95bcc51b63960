"""A canvas is a value: the block of tokens being denoised, with what is fixed in it. Rules take one and return one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from scumble.diffusion.noise import Noise


@dataclass(frozen=True)
class Canvas:
    """ids [L] int64; pinned [L] bool: positions that may not change; index: which canvas of the answer, from 0."""

    ids: Tensor
    pinned: Tensor
    index: int

    @property
    def length(self) -> int:
        return self.ids.shape[0]

    def replace(self, ids: Tensor) -> Canvas:
        """The same canvas with other ids, except where it is pinned."""
        return dataclasses.replace(self, ids=self.keep_pinned(ids))

    def keep_pinned(self, ids: Tensor) -> Tensor:
        return torch.where(self.pinned, self.ids, ids)


@dataclass(frozen=True)
class Proposal:
    """What one pass proposes, per position [L]: argmax and sample (ids), entropy (nats, of the tempered softmax)."""

    argmax: Tensor
    sample: Tensor
    entropy: Tensor


def start_canvas(
    noise: Noise,
    index: int,
    length: int,
    vocab: int,
    draft: Tensor | None = None,
    pinned: dict[int, int] | None = None,
    device: torch.device | str = "cpu",
) -> Canvas:
    """Uniform noise, overwritten by a given draft ([m ≤ L] ids, from position 0) and by pinned ids (position -> id)."""
    ids = torch.as_tensor(noise.initial(index, length, vocab), dtype=torch.int64).clone()
    if draft is not None:
        ids[: draft.shape[0]] = draft
    fixed = torch.zeros(length, dtype=torch.bool)
    for position, token in (pinned or {}).items():
        ids[position], fixed[position] = token, True
    return Canvas(ids.to(device), fixed.to(device), index)

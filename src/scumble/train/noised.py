"""Canvases of a batch as the training passes hand them on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Noised:
    """Canvases of a batch. ids [B, C, L] after corruption, level t [B, C]; first: where they begin in a row, [C]."""

    ids: Tensor
    level: Tensor
    first: list[int]

"""Keys and values of many rows in one pool, by pages: where each row's lie, and what each query sees of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

PAGE = 128  # positions a page; a multiple of every block of keys that a kernel takes at a time


@dataclass(frozen=True)
class Pages:
    """T = rows · tokens queries, a row's behind one another; PAGE positions of a row lie in one page of a pool.

    tables int32 [rows, n]: the page of positions PAGE · j … of a row. low, high int32 [T]: a query sees positions
    low … high - 1 of its row. longest: no query sees more; it decides how much is launched.
    kept: what the operations make of this, once for all layers.
    """

    tables: Tensor
    low: Tensor
    high: Tensor
    tokens: int
    longest: int
    kept: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Destination:
    """Where new keys and values go as they are made: token i's into slot places[i] of pools [slots, G, K]."""

    keys: Tensor
    values: Tensor
    places: Tensor

    def take(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """keys and values [N, G, K] -> the pools that hold them now."""
        return self.keys.index_copy_(0, self.places, keys), self.values.index_copy_(0, self.places, values)

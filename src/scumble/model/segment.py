"""A segment: a run of tokens of one row that goes through the model together, and how it goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from scumble.model.cache import Cache

Mode = Literal["encode", "read", "denoise"]


@dataclass(frozen=True)
class Segment:
    """Tokens [n] of one row.

    mode "encode": causal, appends its keys and values to the cache.
    mode "read": causal as well, but leaves the cache as it was.
    mode "denoise": bidirectional over context and canvas, reads the cache and leaves it as it was.
    soft: softmax·E of the previous pass [n, D] float32, unscaled; None in the first pass (zeros). Denoise only.
    quiet: fill the cache and return no hidden states; the last layer then ends at its keys and values. Encode only.
    """

    tokens: Tensor
    cache: Cache
    mode: Mode
    soft: Tensor | None = None
    quiet: bool = False

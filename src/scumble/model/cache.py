"""The KV cache: what has been encoded, one pair of buffers a layer, always readable as one contiguous view.

A denoise segment needs the context and its own keys side by side without changing the cache. So its keys are written
into the free space *behind* the context and never counted (`scratch`): no concatenation, nothing to undo.
A sliding layer keeps only what its window can still see; when its buffer is full the live tail moves to the front,
which happens once every eighth of a window or so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scumble.config import ModelConfig


def capacity(tokens: int) -> int:
    """How many tokens a buffer has room for that must hold so many: an eighth more, so that it grows or moves its tail
    once in many tokens."""
    return (tokens + tokens // 8) // 16 * 16 + 16


class LayerCache:
    """Keys and values of one layer, [heads, capacity, head_dim]. `keep`: tokens worth keeping; None: all."""

    def __init__(self, heads: int, head_dim: int, keep: int | None, dtype: torch.dtype, device: torch.device):
        self.keep = keep
        self.sizes = (heads, head_dim)
        self.start = 0  # first live slot
        self.end = 0  # one past the last live slot
        self.first = 0  # position, in the row's text, of the token in slot `start`
        self.keys = torch.empty(heads, 0, head_dim, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values [n, heads, head_dim]; returns views of the kept context plus all n new ones."""
        view = self._write(keys, values)
        self.extend(keys.shape[0])
        return view

    def extend(self, n: int) -> None:
        """Count n tokens whose keys and values have been written behind the live ones."""
        self.end += n
        if self.keep is not None:
            gone = max(0, self.end - self.keep - self.start)
            self.start, self.first = self.start + gone, self.first + gone

    def let_go(self, n: int) -> None:
        """Of what no query behind the next n tokens can see."""
        live = self.end - self.start
        gone = 0 if self.keep is None else min(live, max(0, live + n - self.keep))
        self.start, self.first = self.start + gone, self.first + gone

    def rewind(self, length: int) -> None:
        """Let go of what lies beyond the first `length` tokens of the text; their room was reserved, so what the window
        saw then is still there."""
        gone = self.first + self.end - self.start - length
        if gone > 0:
            first = 0 if self.keep is None else max(0, length - self.keep)
            self.start, self.end, self.first = self.start - (self.first - first), self.end - gone, first
            assert self.start >= 0

    def scratch(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the kept context followed by these n keys and values, which the cache does not keep."""
        return self._write(keys, values)

    def _write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        n = keys.shape[0]
        self.reserve(n)
        self.keys[:, self.end : self.end + n] = keys.transpose(0, 1)
        self.values[:, self.end : self.end + n] = values.transpose(0, 1)
        live = slice(self.start, self.end + n)
        return self.keys[:, live], self.values[:, live]

    def reserve(self, n: int) -> None:
        """Make sure that n more tokens fit behind the live ones. Kernels trust in the sizes that are checked here."""
        if self.keys.shape[::2] != self.sizes or self.values.shape != self.keys.shape:
            raise ValueError(f"a cache of (heads, head_dim) {self.sizes} has buffers of {tuple(self.keys.shape)}")
        live, there = self.end - self.start, self.keys.shape[1]
        if self.end + n <= there:
            return
        wanted = capacity(live + n)
        old = [buffer[:, self.start : self.end] for buffer in (self.keys, self.values)]
        if wanted > there:
            shape = (self.keys.shape[0], wanted, self.keys.shape[2])
            keys, values = self.keys.new_empty(shape), self.values.new_empty(shape)
        else:
            keys, values = self.keys, self.values
            old = [tail.clone() for tail in old]  # what overlaps cannot be copied in place
        keys[:, :live], values[:, :live] = old
        self.keys, self.values, self.start, self.end = keys, values, 0, live


class Cache:
    """The context of one row. `length` counts the encoded tokens, also those a sliding layer has let go."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device):
        self.length = 0
        keep = config.sliding_window - 1  # a query sees itself and the window-1 tokens before it
        self.layers = [
            LayerCache(layer.num_key_value_heads, layer.head_dim, keep if layer.is_sliding else None, dtype, device)
            for layer in config.layers
        ]

    def reserve(self, n: int) -> None:
        """Make sure that n more tokens fit into every layer, so that none moves its tail before they are all there."""
        for layer in self.layers:
            layer.reserve(n)

    def rewind(self) -> None:
        """Let go of what layers hold beyond `length`: a forward has failed in between."""
        for layer in self.layers:
            layer.rewind(self.length)

    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for layer in self.layers for t in (layer.keys, layer.values))

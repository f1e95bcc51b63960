"""The KV cache: what has been encoded, one pair of buffers a layer, always readable as one contiguous view.

A denoise segment needs the context and its own keys side by side without changing the cache. So its keys are written
into the free space *behind* the context and never counted (`scratch`): no concatenation, nothing to undo.
A sliding layer keeps only what its window can still see; when its buffer is full the live tail moves to the front,
which happens once every `window` tokens or so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scumble.config import ModelConfig


class LayerCache:
    """Keys and values of one layer, [heads, capacity, head_dim]. `keep`: tokens worth keeping; None: all."""

    def __init__(self, heads: int, head_dim: int, keep: int | None, dtype: torch.dtype, device: torch.device):
        self.keep = keep
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
        """Make sure that n more tokens fit behind the live ones."""
        capacity = self.keys.shape[1]
        if self.end + n <= capacity:
            return
        live = self.end - self.start
        # A sliding layer's buffer settles at twice what it must hold, so that moving the tail is rare.
        wanted = 2 * (live + n)
        if wanted > capacity:
            shape = (self.keys.shape[0], wanted, self.keys.shape[2])
            keys, values = self.keys.new_empty(shape), self.values.new_empty(shape)
        else:
            keys, values = self.keys, self.values
        keys[:, :live] = self.keys[:, self.start : self.end].clone()
        values[:, :live] = self.values[:, self.start : self.end].clone()
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

    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for layer in self.layers for t in (layer.keys, layer.values))

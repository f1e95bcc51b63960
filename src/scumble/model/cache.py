"""The KV cache: what has been encoded, one pair of buffers a layer, always readable as one contiguous view.

A denoise segment needs the context and its own keys side by side without changing the cache. So its keys are written
into the free space *behind* the context and never counted (`beside`): no concatenation, nothing to undo.
A sliding layer keeps only what its window can still see; when its buffer is full the live tail moves to the front,
which happens once every eighth of a window or so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scumble.config import ModelConfig
from scumble.model.rounding import STORED, CacheFormat, Room, make_whole, rounded


def capacity(tokens: int) -> int:
    """How many tokens a buffer has room for that must hold so many: an eighth more, so that it grows or moves its tail
    once in many tokens."""
    return (tokens + tokens // 8) // 16 * 16 + 16


class LayerCache:
    """Keys and values of one layer, [heads, capacity, head_dim]. `keep`: tokens worth keeping; None: all.

    PARTS: the names of its buffers, each [heads, capacity, …]. `room`: a forward's working memory, for caches that keep
    other numbers than they show.
    """

    PARTS: tuple[str, ...] = ("keys", "values")

    def __init__(self, heads: int, head_dim: int, keep: int | None, dtype: torch.dtype, device: torch.device):
        self.keep = keep
        self.sizes = (heads, head_dim)
        self.start = 0  # first live slot
        self.end = 0  # one past the last live slot
        self.first = 0  # position, in the row's text, of the token in slot `start`
        self.keys = torch.empty(heads, 0, head_dim, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)

    @property
    def parts(self) -> list[Tensor]:
        return [getattr(self, name) for name in self.PARTS]

    def append(self, keys: Tensor, values: Tensor, room: Room) -> tuple[Tensor, Tensor]:
        """Add keys and values [n, heads, head_dim]; returns views of the kept context plus all n new ones."""
        view = self.read(keys, values, room)
        self.extend(keys.shape[0])
        return view

    def fill(self, parts: Sequence[Tensor]) -> None:
        """Add what belongs into each buffer, [heads, n, …], as `stored` gives it or another cache had it."""
        n = parts[0].shape[1]
        self.reserve(n)
        for buffer, part in zip(self.parts, parts, strict=True):
            buffer[:, self.end : self.end + n] = part
        self.extend(n)

    def stored(self, keys: Tensor, values: Tensor) -> Sequence[Tensor]:
        """What the buffers hold of keys and values [n, heads, head_dim]."""
        return keys.transpose(0, 1), values.transpose(0, 1)

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

    def read(self, keys: Tensor, values: Tensor, room: Room) -> tuple[Tensor, Tensor]:
        """Views of the kept context followed by these n keys and values, as if they had been added; not counted."""
        n = keys.shape[0]
        self.reserve(n)
        for buffer, part in zip(self.parts, self.stored(keys, values), strict=True):
            buffer[:, self.end : self.end + n] = part
        return self._view(self.end + n, room)

    def beside(self, keys: Tensor, values: Tensor, room: Room) -> tuple[Tensor, Tensor]:
        """Views of the kept context followed by these n keys and values of a canvas, which are never kept."""
        return self.read(keys, values, room)

    def _view(self, end: int, room: Room) -> tuple[Tensor, Tensor]:
        """Keys and values of all slots from the first live one to `end`."""
        return self.keys[:, self.start : end], self.values[:, self.start : end]

    def reserve(self, n: int) -> None:
        """Make sure that n more tokens fit behind the live ones. Kernels trust in the sizes that are checked here."""
        if self.keys.shape[::2] != self.sizes or self.values.shape != self.keys.shape:
            raise ValueError(f"a cache of (heads, head_dim) {self.sizes} has buffers of {tuple(self.keys.shape)}")
        live, there = self.end - self.start, self.keys.shape[1]
        if self.end + n <= there:
            return
        wanted = capacity(live + n)
        buffers, old = self.parts, [buffer[:, self.start : self.end] for buffer in self.parts]
        if wanted > there:
            buffers = [buffer.new_empty(buffer.shape[0], wanted, buffer.shape[2]) for buffer in buffers]
        else:
            old = [tail.clone() for tail in old]  # what overlaps cannot be copied in place
        for name, buffer, tail in zip(self.PARTS, buffers, old, strict=True):
            buffer[:, :live] = tail
            setattr(self, name, buffer)
        self.start, self.end = 0, live


class RoundedLayer(LayerCache):
    """The same in eight bits (model/rounding.py); not so a canvas's own keys and values, which nothing keeps."""

    PARTS = ("keys", "values", "key_scales", "value_scales")

    def __init__(
        self, heads: int, head_dim: int, keep: int | None, dtype: torch.dtype, device: torch.device, form: CacheFormat
    ):
        super().__init__(heads, head_dim, keep, STORED[form], device)
        self.form: CacheFormat = form
        self.key_scales = torch.empty(heads, 0, 1, dtype=dtype, device=device)
        self.value_scales = torch.empty_like(self.key_scales)

    def stored(self, keys: Tensor, values: Tensor) -> Sequence[Tensor]:
        (k, k_scales), (v, v_scales) = (rounded(one.transpose(0, 1), self.form) for one in (keys, values))
        return k, v, k_scales, v_scales

    def beside(self, keys: Tensor, values: Tensor, room: Room) -> tuple[Tensor, Tensor]:
        both = self._whole(self.end, room, keys.shape[0])
        for out, own in zip(both, (keys, values), strict=True):
            out[:, self.end - self.start :] = own.transpose(0, 1)
        return both

    def _view(self, end: int, room: Room) -> tuple[Tensor, Tensor]:
        return self._whole(end, room)

    def _whole(self, end: int, room: Room, more: int = 0) -> tuple[Tensor, Tensor]:
        """Keys and values of all slots from the first live one to `end` in the model's dtype, and room for more."""
        (heads, dim), live, count = self.sizes, slice(self.start, end), end - self.start
        both = room.take((2, heads, count + more, dim), self.key_scales.dtype, self.keys.device)
        for out, part, scales in zip(both, (self.keys, self.values), (self.key_scales, self.value_scales), strict=True):
            make_whole(out[:, :count], part[:, live], scales[:, live], self.form)
        return both[0], both[1]


class Cache:
    """The context of one row. `length` counts the encoded tokens, also those a sliding layer has let go.

    form: the number format of keys and values; None: dtype."""

    _owed: Callable[[], None] | None = None

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device, form: CacheFormat | None = None):
        self.length, self.form = 0, form
        self._layers: list[LayerCache] = []
        for layer in config.layers:
            keep = config.sliding_window - 1 if layer.is_sliding else None  # a query sees itself and those before it
            sizes = layer.num_key_value_heads, layer.head_dim, keep, dtype, device
            self._layers.append(LayerCache(*sizes) if form is None else RoundedLayer(*sizes, form))

    @property
    def layers(self) -> list[LayerCache]:
        if self._owed is not None:
            bring, self._owed = self._owed, None
            bring()
        return self._layers

    def owe(self, bring: Callable[[], None]) -> None:
        """The last tokens' keys and values lie elsewhere; `bring` appends them here, before anybody looks."""
        self._owed = bring

    def reserve(self, n: int) -> None:
        """Make sure that n more tokens fit into every layer, so that none moves its tail before they are all there."""
        for layer in self.layers:
            layer.reserve(n)

    def rewind(self) -> None:
        """Let go of what layers hold beyond `length`: a forward has failed in between."""
        for layer in self.layers:
            layer.rewind(self.length)

    def nbytes(self) -> int:
        return sum(part.nbytes for layer in self._layers for part in layer.parts)

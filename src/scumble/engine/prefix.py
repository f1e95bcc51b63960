"""What has been encoded once: keys and values of prompts, kept for requests that begin alike.

A block is the keys and values of some tokens in all layers. Its name is a hash of its ids and of the block before it,
so it is found only behind the very tokens that it was encoded behind. A row takes up the blocks that are there and
encodes the rest; what it encodes becomes blocks. Of equal beginnings in one step only one is encoded, and the others
wait a step for it. Sliding layers are kept for every block too: whoever goes on from one needs the window before it.

Blocks are copied into and out of a row's cache: that costs memory traffic, but no product. They are bit for bit what
the row would have computed: where operations are batch-invariant for any cut of a prompt, blocks are short; where they
are not, a block is one whole chunk of a prompt, which is encoded as it would be alone.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from scumble.engine.row import Row
from scumble.model import Cache, Transformer

SHORT = 16  # tokens a block where a prompt may be cut anywhere
ROOT = b""  # what stands before the first block

Layers = list[list[Tensor]]  # of each layer what its cache's buffers hold, [heads, tokens, …]


@dataclass
class Block:
    layers: Layers
    nbytes: int


class Prefixes:
    """chunk: tokens of a prompt that go through the model at a time. room: bytes that all blocks may take; those that
    were used longest ago go first."""

    def __init__(self, model: Transformer, chunk: int, room: int):
        self.model, self.chunk, self.room = model, chunk, room
        self.blocks: OrderedDict[bytes, Block] = OrderedDict()
        self.nbytes = 0
        self.reused = 0  # tokens that were taken up, of all rows
        self.limit = room  # of the room, what requests that run leave of it
        self._claimed: set[bytes] = set()

    @property
    def size(self) -> int:
        """Tokens a block."""
        return SHORT if self.model.ops.batch_invariant else self.chunk

    def begin_step(self) -> None:
        self._claimed.clear()

    def fit(self, memory: int) -> None:
        """Take no more memory than this; what was used longest ago goes."""
        self.limit = max(0, min(self.room, memory))
        self._shrink_to(self.limit)

    def take_up(self, row: Row) -> int:
        """Fill a row's cache with what is known of its text, but for the last token; returns how much that is."""
        assert row.cache is not None
        found: list[Block] = []
        if row.cache.length != len(row.blocks) * self.size:  # it stands in the middle of a block
            return 0
        while (name := self._next_name(row, row.length - 1)) is not None and name in self.blocks:
            self.blocks.move_to_end(name)
            found.append(self.blocks[name])
            row.blocks.append(name)
        if found:
            restore(row.cache, [block.layers for block in found])
        self.reused += len(found) * self.size
        return len(found) * self.size

    def claim(self, row: Row) -> bool:
        """A row is about to encode what comes next of its text. False: another one encodes the same block in this very
        step, so it is better to wait for it."""
        name = self._next_name(row, row.length)
        if name in self._claimed:
            return False
        self._claimed |= set() if name is None else {name}
        return True

    def keep(self, row: Row, tokens: int, is_alone: bool) -> None:
        """Make blocks of the last tokens of a row's context, which it has just encoded, as far as they are full.
        is_alone: no canvas was in the same forward."""
        cache, size = row.cache, self.size
        assert cache is not None
        # A single token may go another way through the model than a prompt does; a long block has to be a chunk alone.
        is_fit = tokens > 1 if size < self.chunk else tokens == size and is_alone
        row.is_findable &= is_fit
        while row.is_findable and (name := self._next_name(row, cache.length)) is not None:
            if name not in self.blocks:
                layers = copied(cache, len(row.blocks) * size, size)
                if layers is None:  # a sliding layer has let go of some of them
                    row.is_findable = False
                    return
                self._add(name, layers)
            row.blocks.append(name)

    def _next_name(self, row: Row, end: int) -> bytes | None:
        """The name of the block behind the row's last one; None: its text, up to `end`, has none, or none that others
        could go on from."""
        begin = len(row.blocks) * self.size
        if not row.is_findable or begin + self.size > end:
            return None
        before = row.blocks[-1] if row.blocks else ROOT
        return blake2b(before + row.ids(begin, begin + self.size).numpy().tobytes(), digest_size=16).digest()

    def _add(self, name: bytes, layers: Layers) -> None:
        nbytes = sum(part.nbytes for parts in layers for part in parts)
        if nbytes <= self.limit:
            self._shrink_to(self.limit - nbytes)
            self.blocks[name] = Block(layers, nbytes)
            self.nbytes += nbytes

    def _shrink_to(self, nbytes: int) -> None:
        while self.nbytes > nbytes:
            self.nbytes -= self.blocks.popitem(last=False)[1].nbytes


def copied(cache: Cache, first: int, size: int) -> Layers | None:
    """Keys and values of positions first … first + size of every layer; None where one has let go of some of them."""
    out = []
    for layer in cache.layers:
        begin = layer.end - (cache.length - first)
        if begin < 0:
            return None
        out.append([part[:, begin : begin + size].clone() for part in layer.parts])
    return out


def restore(cache: Cache, blocks: list[Layers]) -> None:
    """Behind what the cache holds, as if they had just been encoded."""
    tokens = sum(block[0][0].shape[1] for block in blocks)
    for number, layer in enumerate(cache.layers):
        own = [block[number] for block in blocks]
        if layer.keep is not None:  # no more than the window sees
            needed = -(-layer.keep // own[0][0].shape[1])
            own = own[-needed:]
            layer.let_go(sum(parts[0].shape[1] for parts in own))
        layer.fill([torch.cat(parts, dim=1) for parts in zip(*own, strict=True)])
        layer.first = cache.length + tokens - (layer.end - layer.start)
    cache.length += tokens

"""The vocabulary operator with native kernels: a sweep over tiles of 1,024 ids, each read once while it is in cache.

The same algorithm as `tiled`, for bfloat16 on the CPU (256 positions' logits over 1,024 ids and their weights are 1 MB
together). Two differences: z comes from a table over all bfloat16 numbers, made by the reference's own operations; and
the mass is remembered for every 128 ids, so a sample recomputes 128 logits a position, not a whole tile.
A position's results do not depend on the positions beside it.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scumble.ops.classes import ClassSweep
from scumble.ops.cpu.native import VocabState, address, pointer
from scumble.ops.cpu.packed import Packed
from scumble.ops.query import VocabQuery
from scumble.ops.result import VocabResult

TILE = 1024  # ids
BLOCK = 128  # as in cpu/vocab.cpp


@lru_cache(maxsize=4)
def capped(cap: float) -> Tensor:
    """softcap of every bfloat16 number, by its bits [65536] float32, rounded step by step as the reference does."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    return every.div_(cap).tanh_().mul_(cap)


def vocab_head(
    lib: ctypes.CDLL,
    hidden: Tensor,
    embedding: Tensor,
    query: VocabQuery,
    *,
    cap: float,
    head: Packed | Any,
) -> VocabResult:
    """Same contract as `Ops.vocab_head`. head: the embedding as packed, or in int8 (which then serves for all)."""
    (n, size), vocab, threads = hidden.shape, embedding.shape[0], torch.get_num_threads()
    small = None if isinstance(head, Packed) else head
    q, scale = (None, None) if small is None else small.rounded(hidden)
    run = Sweep(n, vocab, cap, query, threads)
    soft = torch.zeros(n, size) if query.want_soft else None
    sweep = None if query.classes is None else ClassSweep(query.classes, n, TILE)

    def products(places: Tensor | slice, first: int) -> Tensor:
        """Logits before the soft-cap, bfloat16 [places, ids of the tile]."""
        last = min(first + TILE, vocab)
        if small is None:
            return head.part(hidden[places], first, last)
        return small.product(q[places], scale[places], first, last)  # type: ignore[index]

    for first in range(0, vocab, TILE):
        logits = products(slice(None), first)
        if sweep is not None:
            add_classes(lib, sweep, logits, run, threads)
        weights = torch.empty_like(logits) if query.want_soft else None
        column = None if small is None else small.addresses(first)[2]
        lib.scumble_vocab_tile(
            logits.data_ptr(), run.address, n, logits.shape[1], first, pointer(weights), column, threads
        )
        if soft is None or weights is None:
            continue
        if small is not None:
            soft.mul_(run.factor[:, None]).add_(small.soft(first // TILE, weights))
        else:
            rows = embedding[first : first + TILE]
            lib.scumble_vocab_soft(
                weights.data_ptr(),
                address(rows),
                run.factor.data_ptr(),
                soft.data_ptr(),
                n,
                rows.shape[0],
                size,
                threads,
            )

    logsumexp, entropy = torch.empty(2, n)
    drawn = None if query.uniforms is None else query.uniforms.double().contiguous()
    block, share = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.float64)
    lib.scumble_vocab_finish(
        run.address, pointer(drawn), logsumexp.data_ptr(), entropy.data_ptr(), pointer(soft), block.data_ptr(),
        share.data_ptr(), n, size, threads,
    )  # fmt: skip
    sample = None
    if drawn is not None:
        sample = torch.empty(n, dtype=torch.int64)
        base = head.base if small is None else small.addresses()
        lib.scumble_vocab_sample(
            hidden.data_ptr(), run.address, block.data_ptr(), share.data_ptr(), pointer(q), pointer(scale), *base,
            sample.data_ptr(), n, size, vocab, threads,
        )  # fmt: skip
    if sweep is not None:
        sweep.finish(
            lambda places, first: (
                run.table[products(places, first).view(torch.int16).long() & 0xFFFF] / run.heat[places][:, None]
            )
        )
    found = (run.best_ids, run.best) if query.top else (None, None)
    own = None if query.targets is None else run.target_z
    return VocabResult(logsumexp, entropy, run.argmax, sample, soft, *found, own, sweep)


class Sweep:
    """The running statistics of n positions, and struct VocabState, which tells the kernels where they are."""

    def __init__(self, n: int, vocab: int, cap: float, query: VocabQuery, threads: int):
        allowed, targets, top = query.allowed, query.targets, query.top
        blocks = -(-vocab // BLOCK)
        self.table = capped(cap)
        self.heat = torch.as_tensor(query.temperature, dtype=torch.float32).expand(n).contiguous()
        self.allowed = None if allowed is None else allowed.contiguous()
        self.targets = None if targets is None else targets.contiguous()
        self.peak, self.factor = torch.full((n,), float("-inf")), torch.empty(n)
        self.argmax = torch.zeros(n, dtype=torch.int64)
        self.total, self.energy = torch.zeros(2, n, dtype=torch.float64)
        self.mass = torch.empty(n, blocks, dtype=torch.float64)
        self.target_z = torch.full((n,), float("-inf"))
        self.best = torch.full((n, top), float("-inf"))
        self.best_ids = torch.zeros(n, top, dtype=torch.int64)
        self.scratch = torch.empty(threads, TILE + 16)
        self.state = VocabState(
            *(pointer(getattr(self, name)) for name in VocabState.POINTERS),
            vocab if allowed is not None and allowed.ndim == 2 else 0, blocks, top,
        )  # fmt: skip
        self.address = ctypes.addressof(self.state)


def add_classes(lib: ctypes.CDLL, sweep: ClassSweep, logits: Tensor, run: Sweep, threads: int) -> None:
    """`ClassSweep.add` for bfloat16 logits [n, w] before the soft-cap."""
    (n, width), number = logits.shape, len(sweep.kept)
    runs = sweep.runs[number]
    tops, sums = np.empty((2, n, len(runs.kinds)), np.float32)
    scratch = np.empty((threads, 4 * width + 64), np.float32)
    lib.scumble_class_tile(
        logits.contiguous().data_ptr(), run.table.data_ptr(), run.heat.data_ptr(),
        *(array.ctypes.data for array in (runs.order, runs.begins, runs.kinds)),
        *(array.ctypes.data for array in (sweep.peak, sweep.total, sweep.energy, sweep.tiles, tops, sums, scratch)),
        n, width, len(runs.kinds), sweep.classes.count, number, threads,
    )  # fmt: skip
    sweep.kept.append((tops, sums))

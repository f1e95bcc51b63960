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

import torch
from torch import Tensor

from scumble.ops.cpu.classes import NativeClasses, tables
from scumble.ops.cpu.native import VocabHead, VocabState, address, pointer
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
    hidden = hidden.contiguous()
    asked = [NativeClasses(one, TILE) for one in query.classes]
    run = Sweep(n, vocab, cap, query, threads)
    soft = torch.zeros(n, size) if query.want_soft else None
    classes = tables(asked)

    for first in range(0, vocab, TILE):
        last = min(first + TILE, vocab)
        if small is None:
            logits, column = head.part(hidden, first, last), None
        else:  # before the soft-cap, bfloat16 [n, ids of the tile]
            logits, column = small.product(q, scale, first, last), small.addresses(first)[2]
        weights = torch.empty_like(logits) if query.want_soft else None
        here = None if classes is None else classes[first // TILE].ctypes.data
        lib.scumble_vocab_tile(
            logits.data_ptr(), run.address, n, logits.shape[1], first, pointer(weights), column, here, len(asked),
            threads,
        )  # fmt: skip
        if soft is None or weights is None:
            continue
        if small is not None:
            soft.mul_(run.factor[:, None]).add_(small.soft(first // TILE, weights))
        else:
            rows = embedding[first : first + TILE]
            lib.scumble_vocab_soft(
                weights.data_ptr(), address(rows), run.factor.data_ptr(), soft.data_ptr(), n, rows.shape[0], size,
                threads,
            )  # fmt: skip

    logsumexp, entropy = torch.empty(2, n)
    drawn = None if query.uniforms is None else query.uniforms.double().contiguous()
    block, share = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.float64)
    lib.scumble_vocab_finish(
        run.address, pointer(drawn), logsumexp.data_ptr(), entropy.data_ptr(), pointer(soft), block.data_ptr(),
        share.data_ptr(), n, size, threads,
    )  # fmt: skip
    base = head.base if small is None else small.addresses()
    again = VocabHead(hidden.data_ptr(), pointer(q), pointer(scale), *base, size)
    sample = None
    if drawn is not None:
        sample = torch.empty(n, dtype=torch.int64)
        lib.scumble_vocab_sample(
            ctypes.addressof(again), run.address, block.data_ptr(), share.data_ptr(), sample.data_ptr(), n, threads
        )
    for one in asked:
        one.finish()
        one.drawn_by(lib, ctypes.addressof(again), run.address, threads, holds=(again, run, hidden, q, scale, head))
    found = (run.best_ids, run.best) if query.top else (None, None)
    own = None if query.targets is None else run.target_z
    return VocabResult(logsumexp, entropy, run.argmax, sample, soft, *found, own, tuple(asked))


class Sweep:
    """The running statistics of n positions, and struct VocabState, which tells the kernels where they are."""

    def __init__(self, n: int, vocab: int, cap: float, query: VocabQuery, threads: int):
        blocks, top = -(-vocab // BLOCK), query.top
        self.table = capped(cap)
        self.heat = torch.as_tensor(query.temperature, dtype=torch.float32).expand(n).contiguous()
        self.allowed = None if query.allowed is None else query.allowed.contiguous()
        self.mask = None if query.mask is None else query.mask.contiguous()
        if query.allowed is not None and query.mask is None:  # one for all, or one a position
            self.mask = torch.arange(n) if query.allowed.ndim == 2 else torch.zeros(n, dtype=torch.int64)
        self.targets = None if query.targets is None else query.targets.contiguous()
        self.peak, self.factor = torch.full((n,), float("-inf")), torch.empty(n)
        self.argmax = torch.zeros(n, dtype=torch.int64)
        self.total, self.energy = torch.zeros(2, n, dtype=torch.float64)
        self.mass = torch.empty(n, blocks, dtype=torch.float64)
        self.target_z = torch.full((n,), float("-inf"))
        self.best = torch.full((n, top), float("-inf"))
        self.best_ids = torch.zeros(n, top, dtype=torch.int64)
        room = 3 * TILE + 64  # z of a tile, and what classes.h needs beside it
        self.scratch = torch.empty(threads, room)
        pointers = (pointer(getattr(self, name)) for name in VocabState.POINTERS)
        self.state = VocabState(*pointers, vocab, blocks, top, room)
        self.address = ctypes.addressof(self.state)

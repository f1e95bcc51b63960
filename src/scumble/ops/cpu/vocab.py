"""The vocabulary operator with native kernels: products by torch, everything between them in one sweep over a tile.

The same algorithm as `tiled`, for bfloat16 on the CPU: a tile of logits is read once while it is in cache (256
positions' logits over 1,024 ids and their weights are 1 MB together). Two
differences: z comes from a table over all bfloat16 numbers, made by the reference's own operations; and the mass is
remembered for every 128 ids, so a sample recomputes 128 logits a position, not a whole tile.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scumble.ops.classes import ClassSweep, TokenClasses
from scumble.ops.cpu.native import pointer
from scumble.ops.result import VocabResult

TILE = 1024  # ids
BLOCK = 128  # as in cpu/vocab.cpp
LEAST = 2**16  # logits: below, torch's few small operations are as good and the table would be most of the work


@lru_cache(maxsize=4)
def capped(cap: float) -> Tensor:
    """softcap of every bfloat16 number, by its bits [65536] float32, rounded step by step as the reference does."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    return every.div_(cap).tanh_().mul_(cap)


def vocab_head(
    lib: ctypes.CDLL,
    hidden: Tensor,
    embedding: Tensor,
    *,
    cap: float,
    temperature: float,
    uniforms: Tensor | None,
    want_soft: bool,
    classes: TokenClasses | None = None,
    head: Any = None,
) -> VocabResult:
    """Same contract as `Ops.vocab_head`, for what is not left to `tiled`. head: the embedding in int8, for all."""
    (n, size), vocab = hidden.shape, embedding.shape[0]
    threads, blocks = torch.get_num_threads(), -(-vocab // BLOCK)
    q, scale = (None, None) if head is None else head.rounded(hidden)
    table = capped(cap) / temperature
    peak = torch.full((n,), float("-inf"))
    argmax = torch.zeros(n, dtype=torch.int64)
    total, energy = torch.zeros(2, n, dtype=torch.float64)
    masses = torch.empty(n, blocks, dtype=torch.float64)
    factor = torch.empty(n)
    scratch = torch.empty(threads, TILE + 16)
    soft = torch.zeros(n, size) if want_soft else None
    sweep = None if classes is None else ClassSweep(classes, n, TILE)

    def products(places: Tensor | slice, first: int) -> Tensor:
        """Logits before the soft-cap, bfloat16 [places, ids of the tile]."""
        if head is None or q is None or scale is None:
            return hidden[places] @ embedding[first : first + TILE].T
        return head.product(q[places], scale[places], first, min(first + TILE, vocab))

    for first in range(0, vocab, TILE):
        rows = embedding[first : first + TILE]
        logits = products(slice(None), first)
        if sweep is not None:
            add_classes(lib, sweep, logits, table, threads)
        weights = torch.empty_like(logits) if want_soft else None
        column = None if head is None else head.addresses(first)[2]
        lib.scumble_vocab_tile(
            logits.data_ptr(), table.data_ptr(), n, rows.shape[0], first, blocks, peak.data_ptr(), argmax.data_ptr(),
            total.data_ptr(), energy.data_ptr(), masses.data_ptr(), factor.data_ptr(),
            pointer(weights), column, scratch.data_ptr(), threads,
        )  # fmt: skip
        if soft is not None and weights is not None:
            part = weights @ rows if head is None else head.soft(first // TILE, weights)
            soft.mul_(factor[:, None]).add_(part)

    logsumexp = peak.double() + total.log()
    entropy = (total.log() - energy / total).clamp_min(0)
    sample = None
    if uniforms is not None:
        sample = torch.empty(n, dtype=torch.int64)
        block, share = choose_block(masses, uniforms.double())
        lib.scumble_vocab_sample(
            hidden.data_ptr(), embedding.data_ptr(), table.data_ptr(), block.data_ptr(), share.data_ptr(),
            pointer(q), pointer(scale), *((None,) * 3 if head is None else head.addresses()),
            sample.data_ptr(), n, size, vocab, threads,
        )  # fmt: skip
    if soft is not None:
        soft.div_(total.float()[:, None])
    if sweep is not None:
        sweep.finish(lambda places, first: table[products(places, first).view(torch.int16).long() & 0xFFFF])
    return VocabResult(logsumexp.float(), entropy.float(), argmax, sample, soft, classes=sweep)


def add_classes(lib: ctypes.CDLL, sweep: ClassSweep, logits: Tensor, table: Tensor, threads: int) -> None:
    """`ClassSweep.add` for bfloat16 logits [n, w] before the soft-cap."""
    (n, width), number = logits.shape, len(sweep.kept)
    runs = sweep.runs[number]
    tops, sums = np.empty((2, n, len(runs.kinds)), np.float32)
    scratch = np.empty((threads, 4 * width + 64), np.float32)
    lib.scumble_class_tile(
        logits.contiguous().data_ptr(), table.data_ptr(),
        *(array.ctypes.data for array in (runs.order, runs.begins, runs.kinds)),
        *(array.ctypes.data for array in (sweep.peak, sweep.total, sweep.energy, sweep.tiles, tops, sums, scratch)),
        n, width, len(runs.kinds), sweep.classes.count, number, threads,
    )  # fmt: skip
    sweep.kept.append((tops, sums))


def choose_block(masses: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """masses: logs [n, blocks] -> each row's block [n], and how much of that block's mass lies before its uniform."""
    relative = (masses - masses.max(-1, keepdim=True).values).exp_()
    running = relative.cumsum(-1)
    target = uniforms[:, None] * running[:, -1:]
    chosen = (running <= target).sum(-1, keepdim=True).clamp_max(relative.shape[1] - 1)
    chosen = torch.where(relative.gather(1, chosen) > 0, chosen, relative.argmax(-1, keepdim=True))
    own = relative.gather(1, chosen)
    share = (target - (running.gather(1, chosen) - own)) / own
    return chosen[:, 0].contiguous(), share.clamp_(0, 1)[:, 0].contiguous()

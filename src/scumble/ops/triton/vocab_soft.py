"""The second read of the embedding: soft[n] = Σ_v p[n, v] · embedding[v], a chunk of ids at a time.

The first read leaves exp(z - peak of its tile) of a chunk, in the model's dtype. Relative to the highest peak so far a
tile counts with factor exp(its peak - highest); below 2^-30 it is 0, which no result of 24 bits shows, and a tile that
is 0 for all positions of a block is left out of the block's list. So a settled canvas reads next to nothing. The rule
looks at each position alone: adding 0 · weight changes no bit, so neighbours do not matter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scumble.ops.triton.launch import blocks, launch, power_of_two, tiles_for

CHUNK = 32_768  # ids: [256, 32,768] weights in bfloat16 are 17 MB and stay in the cache of the cards in question
SPLITS = 4  # programs that share a chunk, each with sums of its own


@triton.jit
def _fade(peaks, before, highest, fades, factors, TILES, FIRST, COUNT, B: tl.constexpr):
    """One position a program. before, highest [N]: the highest peak without and with this chunk; fades [N]: what older
    sums are worth; factors [N, COUNT]: what the chunk's tiles are. Tiles FIRST … FIRST + COUNT - 1."""
    row = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, B)
    peak = tl.load(peaks + row * TILES + FIRST + t, mask=(t < COUNT) & (FIRST + t < TILES), other=float("-inf"))
    old = tl.load(before + row)
    new = tl.maximum(old, tl.max(peak, 0))
    base = tl.where(new == float("-inf"), 0.0, new)
    factor = tl.exp(peak - base)
    tl.store(highest + row, new)
    tl.store(fades + row, tl.exp(old - base))
    tl.store(factors + row * COUNT + t, tl.where(factor < 9.313225746154785e-10, 0.0, factor), mask=t < COUNT)


@triton.jit(do_not_specialize=["N"])
def _live(factors, lists, counts, N, COUNT, SHARE: tl.constexpr, B: tl.constexpr, BM: tl.constexpr):
    """Of a block of BM positions and one of the splits: the tiles that count for somebody. lists [·, SPLITS, SHARE]."""
    block, split = tl.program_id(0), tl.program_id(1)
    r = block * BM + tl.arange(0, BM)
    s = tl.arange(0, B)
    t = split * SHARE + s
    at = factors + r.to(tl.int64)[:, None] * COUNT + t[None, :]
    factor = tl.load(at, mask=(r < N)[:, None] & ((s < SHARE) & (t < COUNT))[None, :], other=0.0)
    wanted = (tl.max(factor, 0) > 0.0).to(tl.int32)
    here = block * tl.num_programs(1) + split
    tl.store(lists + here * SHARE + tl.cumsum(wanted, 0) - wanted, t, mask=wanted != 0)
    tl.store(counts + here, tl.sum(wanted, 0))


@triton.jit(do_not_specialize=["N"])
def _soft(
    weights, embedding, factors, lists, counts, fades, soft, N, FIRST, V, COUNT, CHUNK, D, SHARE: tl.constexpr,
    BM: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """soft [SPLITS, N, D] ← soft · fade + Σ weights · factor · embedding, over the list of live tiles."""
    block, split = tl.program_id(1), tl.program_id(2)
    r = block * BM + tl.arange(0, BM)
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    here = block * tl.num_programs(2) + split
    total = tl.zeros((BD, BM), tl.float32)
    v = tl.arange(0, BV)
    row = r.to(tl.int64)
    for i in range(0, tl.load(counts + here)):
        tile = tl.load(lists + here * SHARE + i)
        local = tile * BV + v
        ids = (FIRST + local).to(tl.int64)
        factor = tl.load(factors + row * COUNT + tile, mask=r < N, other=0.0)
        e = tl.load(embedding + ids[None, :] * D + d[:, None], mask=(ids < V)[None, :] & (d < D)[:, None], other=0.0)
        weight = tl.load(weights + row[None, :] * CHUNK + local[:, None], mask=(r < N)[None, :], other=0.0)
        weight = (weight.to(tl.float32) * factor[None, :]).to(weights.dtype.element_ty)
        total = tl.dot(e, weight, total, input_precision="ieee")
    at = soft + (split.to(tl.int64) * N + row[None, :]) * D + d[:, None]
    ok = (r < N)[None, :] & (d < D)[:, None]
    fade = tl.load(fades + row, mask=r < N, other=0.0)[None, :]
    tl.store(at, tl.load(at, mask=ok, other=0.0) * fade + total, mask=ok)


@triton.jit(do_not_specialize=["N"])
def _settle(soft, total, out, N, D, SPLITS: tl.constexpr, B: tl.constexpr):
    """One position a program: the splits' sums in order, divided by the whole mass."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * B + tl.arange(0, B)
    mixed = tl.zeros((B,), tl.float32)
    for split in tl.static_range(SPLITS):  # pyright: ignore[reportGeneralTypeIssues]
        mixed += tl.load(soft + (split * N + row) * D + d, mask=d < D, other=0.0)
    tl.store(out + row * D + d, mixed / tl.load(total + row).to(tl.float32), mask=d < D)


def chunk_of(vocab: int, width: int) -> int:
    """How many ids are swept at a time, in tiles of `width`. The last chunk may be short."""
    whole = width * SPLITS
    return min(CHUNK, blocks(vocab, whole) * whole)


class Soft:
    """The running sums of n positions. For every chunk of ids: fill `weights`, then `add`; at the end `settled`."""

    def __init__(self, n: int, vocab: int, width: int, hidden: Tensor, embedding: Tensor):
        device = hidden.device
        self.embedding, self.vocab, self.width, self.n = embedding, vocab, width, n
        self.size = hidden.shape[1]
        self.chunk = chunk_of(vocab, width)
        self.count = self.chunk // width  # tiles a chunk
        self.share = self.count // SPLITS
        self.rows = tiles_for("soft", device)["BM"]
        self.weights = torch.empty(n, self.chunk, dtype=hidden.dtype, device=device)
        self.highest = torch.full((n,), float("-inf"), dtype=torch.float32, device=device)
        self.sums = torch.zeros(SPLITS, n, self.size, dtype=torch.float32, device=device)

    def add(self, first: int, peaks: Tensor) -> None:
        """peaks [n, tiles] of all tiles so far; `weights` holds the chunk that begins at id `first`."""
        device = peaks.device
        fades, highest = (torch.empty(self.n, dtype=torch.float32, device=device) for _ in range(2))
        factors = torch.empty(self.n, self.count, dtype=torch.float32, device=device)
        arguments = (
            peaks, self.highest, highest, fades, factors, peaks.shape[1], first // self.width, self.count
        )  # fmt: skip
        launch("fade", _fade, (self.n,), arguments, B=power_of_two(self.count))
        self.highest = highest
        groups = blocks(self.n, self.rows)
        lists = torch.empty(groups, SPLITS, self.share, dtype=torch.int32, device=device)
        counts = torch.empty(groups, SPLITS, dtype=torch.int32, device=device)
        arguments = (factors, lists, counts, self.n, self.count)
        grid = groups, SPLITS
        launch("live", _live, grid, arguments, SHARE=self.share, B=power_of_two(self.share), BM=self.rows)
        grid = blocks(self.size, tiles_for("soft", device)["BD"]), groups, SPLITS
        arguments = (
            self.weights, self.embedding, factors, lists, counts, fades, self.sums, self.n, first, self.vocab,
            self.count, self.chunk, self.size,
        )  # fmt: skip
        launch("soft", _soft, grid, arguments, SHARE=self.share, BV=self.width)

    def settled(self, total: Tensor) -> Tensor:
        """soft [n, D] float32, given the whole mass [n] relative to the highest peak."""
        out = torch.empty(self.n, self.size, dtype=torch.float32, device=total.device)
        arguments = (self.sums, total, out, self.n, self.size)
        launch("settle", _settle, (self.n, blocks(self.size, 1024)), arguments, SPLITS=SPLITS, B=1024)
        return out

"""Attention in which every query has a range of keys: one kernel for canvases, prompts, windows and single steps.

    out[t, h] = Σ_s softmax_s(q[t, h] · k[s, g]) · v[s, g],   low[t] ≤ s < high[t],   g = h // share

A canvas token sees its context and all of its canvas; a prompt token at position p sees p - window + 1 … p. A program
takes BM query rows (the `share` heads of some tokens of one row of the batch) and one run of SPLIT keys; a second
kernel joins the runs. Runs begin at multiples of SPLIT and blocks at multiples of BN, counted from the row's first
key, and a block that a query may not see changes nothing of its sums: so the bits do not depend on what else is in the
batch, on how a prompt was cut into chunks, or on how many runs were launched.

head_dim 512 does not fit beside its own sums: the columns of the values are cut over DIM / DV programs, each of which
makes the scores again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from scumble.ops.triton.launch import blocks, launch, power_of_two, tiles_for

NO_PAGES = 0


@dataclass(frozen=True)
class Queries:
    """Which keys each token sees, and how tokens are cut into tiles of neighbours of one row. All int32.

    low, high [T]: its range of keys. Of each tile its first token, number of tokens (0: nothing to do) and row.
    """

    low: Tensor
    high: Tensor
    tile_first: Tensor
    tile_count: Tensor
    tile_row: Tensor


@triton.jit(do_not_specialize=["TOKENS", "ROW_PAGES", "BASE", "SPLITS"])
def _attend(
    q, k, v, out, mass, low, high, tile_first, tile_count, tile_row, pages, q_token, q_head, kv_token, kv_head,
    TOKENS, ROW_PAGES, BASE, SPLITS, SHARE: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr, SEVERAL: tl.constexpr,
    PAGE: tl.constexpr, DV: tl.constexpr, SPLIT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """q [T, H, DIM]; k, v [·, G, DIM] by slot; without pages, key BASE lies in slot 0. D: DIM up to a power of two.

    out [SPLITS, T, H, DIM] and mass [SPLITS, T, H] (log2 Σ exp2) float32; with one split, and so not SEVERAL,
    out [T, H, DIM] is the result and has the model's dtype.
    """
    tile = tl.program_id(0)
    group = tl.program_id(1)
    column = tl.program_id(2) % (D // DV) * DV
    count = tl.load(tile_count + tile)
    if count == 0:
        return
    r = tl.arange(0, BM)
    live = r // SHARE < tl.minimum(count, BM // SHARE)
    token = tl.load(tile_first + tile) + r // SHARE
    head = group * SHARE + r % SHARE
    first = tl.load(low + token, mask=live, other=2147483647)
    last = tl.load(high + token, mask=live, other=0)
    tile_low = tl.min(first, 0)
    tile_high = tl.max(last, 0)
    split = tile_low // SPLIT + tl.program_id(2) // (D // DV)
    start = tl.maximum(split * SPLIT, tile_low // BN * BN)
    stop = tl.minimum(split * SPLIT + SPLIT, tile_high)
    if start >= stop:
        return
    d = tl.arange(0, D)
    dv = column + tl.arange(0, DV)
    q_at = q + token.to(tl.int64)[:, None] * q_token + head[:, None] * q_head + d[None, :]
    queries = tl.load(q_at, mask=live[:, None] & (d < DIM)[None, :], other=0.0)
    row_pages = pages + tl.load(tile_row + tile).to(tl.int64) * ROW_PAGES
    k += group.to(tl.int64) * kv_head
    v += group.to(tl.int64) * kv_head
    peak = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    mixed = tl.zeros((BM, DV), tl.float32)
    for i in range(start, stop, BN):
        key = i + tl.arange(0, BN)
        slot = key.to(tl.int64) - BASE
        if PAGE > 0:  # a block never crosses a page: PAGE is a multiple of BN
            slot = tl.load(row_pages + i // PAGE).to(tl.int64) * PAGE + key % PAGE
        inside = (key >= tile_low) & (key < stop)  # what lies before may be no number: 0 · NaN is NaN
        keys = tl.load(k + slot[None, :] * kv_token + d[:, None], mask=inside[None, :] & (d < DIM)[:, None], other=0.0)
        score = tl.dot(queries, keys, input_precision="ieee") * 1.4426950408889634  # log2 e: exp2 is the hardware's
        seen = (key[None, :] >= first[:, None]) & (key[None, :] < last[:, None])
        score = tl.where(seen, score, float("-inf"))
        higher = tl.maximum(peak, tl.max(score, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet: all weights are 0, none is NaN
        weights = tl.exp2(score - base[:, None])
        fade = tl.exp2(peak - base)
        total = total * fade + tl.sum(weights, 1)
        values = tl.load(
            v + slot[:, None] * kv_token + dv[None, :], mask=inside[:, None] & (dv < DIM)[None, :], other=0.0
        )
        mixed = tl.dot(weights.to(values.dtype), values, mixed * fade[:, None], input_precision="ieee")
        peak = higher
    mixed = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
    heads = tl.num_programs(1) * SHARE
    at = token.to(tl.int64) * heads + head
    if SEVERAL:  # a tile's runs are consecutive, so the remainder names them apart
        at += (split % SPLITS).to(tl.int64) * TOKENS * heads
        if column == 0:
            tl.store(mass + at, peak + tl.log2(tl.where(total == 0.0, 1.0, total)), mask=live)
    store = live[:, None] & (dv < DIM)[None, :]
    tl.store(out + at[:, None] * DIM + dv[None, :], mixed.to(out.dtype.element_ty), mask=store)


@triton.jit(do_not_specialize=["TOKENS", "SPLITS"])
def _join(part, mass, low, high, out, TOKENS, HEADS, SPLITS, DIM: tl.constexpr, D: tl.constexpr, SPLIT: tl.constexpr):
    """One token and head a program: the runs of its keys, each weighted with its mass. part [SPLITS, T, H, DIM]."""
    token, head = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, D)
    first = tl.load(low + token) // SPLIT
    last = (tl.load(high + token) - 1) // SPLIT
    here = token.to(tl.int64) * HEADS + head
    plane = TOKENS.to(tl.int64) * HEADS
    peak = float("-inf")
    for split in range(first, last + 1):
        at = (split % SPLITS) * plane + here  # pyright: ignore[reportOperatorIssue]
        peak = tl.maximum(peak, tl.load(mass + at))
    total = 0.0
    mixed = tl.zeros((D,), tl.float32)
    for split in range(first, last + 1):
        at = (split % SPLITS) * plane + here  # pyright: ignore[reportOperatorIssue]
        weight = tl.exp2(tl.load(mass + at) - peak)
        total += weight
        mixed += tl.load(part + at * DIM + d, mask=d < DIM, other=0.0) * weight
    tl.store(out + here * DIM + d, (mixed / total).to(out.dtype.element_ty), mask=d < DIM)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Queries,
    longest: int,
    pages: Tensor | None = None,
    page: int = NO_PAGES,
    step: bool = False,
    base: int = 0,
) -> Tensor:
    """q [T, H, K] over k and v [slots, G, K] (any strides but the last, the same for both) -> [T, H, K].

    longest: no tile sees keys further apart than this; it decides how many runs are launched. pages [rows, n] int32:
    page numbers of each row's keys, `page` keys each; without, key number `base` lies in slot 0. step: every row has a
    single token.
    """
    tokens, heads, dim = q.shape
    groups = k.shape[1]
    size = max(16, power_of_two(dim))
    name = name_of(dim, step)
    tiles = tiles_for(name, q.device)
    columns = min(tiles["DV"], size)
    splits = blocks(longest, tiles["SPLIT"]) + (longest % tiles["SPLIT"] != 1)  # a range may straddle one more border
    if pages is None:
        splits = blocks(base + longest, tiles["SPLIT"]) - base // tiles["SPLIT"]
    if page % tiles["BN"] or tiles["SPLIT"] % tiles["BN"]:
        raise ValueError(f"a page of {page} keys and a run of {tiles['SPLIT']} must be multiples of {tiles['BN']}")
    out = torch.empty(tokens, heads, dim, dtype=q.dtype, device=q.device)
    part, mass = out, queries.low
    if splits > 1:
        part = torch.empty(splits, tokens, heads, dim, dtype=torch.float32, device=q.device)
        mass = torch.empty(splits, tokens, heads, dtype=torch.float32, device=q.device)
    table = queries.low if pages is None else pages
    arguments = (
        q, k, v, part, mass, queries.low, queries.high, queries.tile_first, queries.tile_count, queries.tile_row, table,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), tokens, 0 if pages is None else pages.shape[1], base,
        splits,
    )  # fmt: skip
    grid = queries.tile_count.shape[0], groups, splits * (size // columns)
    launch(
        name, _attend, grid, arguments, SHARE=heads // groups, DIM=dim, D=size, SEVERAL=splits > 1, PAGE=page,
        DV=columns,
    )  # fmt: skip
    if splits > 1:
        arguments = (part, mass, queries.low, queries.high, out, tokens, heads, splits)
        launch("join", _join, (tokens, heads), arguments, DIM=dim, D=size, SPLIT=tiles["SPLIT"])
    return out


def name_of(dim: int, step: bool) -> str:
    """The operation's name in the table of tiles: heads of up to 256 numbers, or wider ones."""
    return f"{'step attend' if step else 'attend'} {256 if dim <= 256 else 512}"


def one_row(low: Tensor, high: Tensor, share: int, name: str) -> Queries:
    """Queries of a single row: low, high [T] int32."""
    tokens, device = low.shape[0], low.device
    size = tiles_for(name, device)["BM"] // share
    first = torch.arange(0, tokens, size, dtype=torch.int32, device=device)
    return Queries(low, high, first, (tokens - first).clamp_max(size), torch.zeros_like(first))


def several_rows(low: Tensor, high: Tensor, tokens: int, share: int, name: str) -> Queries:
    """Queries of rows that have `tokens` each, one row behind the other: low, high [rows · tokens] int32."""
    device, rows = low.device, low.shape[0] // tokens
    size = tiles_for(name, device)["BM"] // share
    each = blocks(tokens, size)
    tile = torch.arange(rows * each, dtype=torch.int32, device=device)
    row, inside = tile // each, tile % each * size
    return Queries(low, high, row * tokens + inside, (tokens - inside).clamp_max(size), row)


def attend_reference(q: Tensor, k: Tensor, v: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """q [T, H, K], k and v [S, G, K] of one row, in float32 -> [T, H, K]."""
    share = q.shape[1] // k.shape[1]
    k, v = (x.float().transpose(0, 1).repeat_interleave(share, 0) for x in (k, v))  # [H, S, K]
    scores = q.float().transpose(0, 1) @ k.transpose(1, 2)  # [H, T, S]
    key = torch.arange(k.shape[1], device=q.device)
    seen = (key >= low[:, None]) & (key < high[:, None])
    weights = torch.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1)
    return (weights @ v).transpose(0, 1).to(q.dtype)

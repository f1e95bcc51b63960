"""The vocabulary operator: everything that is asked of softmax(z), z = softcap(hidden · embeddingᵀ) / temperature,
without ever holding z. Positions n, ids V, hidden size D. The embedding is read twice at most:

1. "vocab": logits of BM positions × BV ids; of every such tile and position its peak, mass Σ exp(z - peak), energy
   Σ exp(z - peak) · (z - peak) and lowest best id. For soft embeddings, a chunk of ids at a time, also exp(z - peak).
2. "soft" (vocab_soft.py): those weights times the embedding. Tiles that no position cares about are not read.

Then, on numbers a tile: "summary" makes logsumexp, entropy and argmax of a position, and finds the tile in which its
cumulative probability passes its uniform; "pick" makes that tile's logits again and finds the id. Best ids come from
the k tiles with the highest peaks, targets from their own tile, both made again as well ("again").
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scumble.ops.query import VocabQuery
from scumble.ops.result import VocabResult
from scumble.ops.triton.launch import blocks, launch, power_of_two, tiles_for

EVERYTHING = 0  # `allowed` modes of the kernels: no mask; one mask for all positions or one a position
MASKED = 1


@triton.jit
def logits(
    h, embedding, r, live, ids, V, allowed, MASK_ROW, cap, temperature,
    D: tl.constexpr, MASK: tl.constexpr, RUN: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """z [BV, BM] float32 of positions r [BM] (live or not) and ids [BV]; -inf beyond V and where not allowed.

    allowed: bits, 32 ids a word, MASK_ROW words a position. RUN: ids follow each other, the first a multiple of 32.
    Products are rounded to h's dtype, as the reference's.
    """
    total = tl.zeros((BV, BM), tl.float32)
    k = tl.arange(0, BK)
    e_at = embedding + ids.to(tl.int64)[:, None] * D + k[None, :]
    h_at = h + r.to(tl.int64)[None, :] * D + k[:, None]
    for first in range(0, D, BK):
        inside = k < D - first
        e = tl.load(e_at + first, mask=(ids < V)[:, None] & inside[None, :], other=0.0)
        x = tl.load(h_at + first, mask=live[None, :] & inside[:, None], other=0.0)
        total = tl.dot(e, x, total, input_precision="ieee")
    z = total.to(h.dtype.element_ty).to(tl.float32) / cap
    z = (1.0 - 2.0 / (tl.exp(2.0 * z) + 1.0)) * cap  # cap · tanh(z / cap)
    z = z / tl.load(temperature + r, mask=live, other=1.0)[None, :]
    ok = (ids < V)[:, None]
    if MASK and RUN:  # a word is read once for its 32 ids: one load an id needs more registers than there are
        w = tl.min(ids, 0) // 32 + tl.arange(0, BV // 32)
        at = allowed + r.to(tl.int64)[None, :] * MASK_ROW + w[:, None]
        word = tl.load(at, mask=(w * 32 < V)[:, None] & live[None, :], other=0)
        bits = tl.broadcast_to(word[:, None, :], (BV // 32, 32, BM)) >> tl.arange(0, 32)[None, :, None]
        ok = ok & (tl.reshape(bits & 1, (BV, BM)) != 0)
    elif MASK:
        at = allowed + r.to(tl.int64)[None, :] * MASK_ROW + (ids // 32)[:, None]
        word = tl.load(at, mask=ok & live[None, :], other=0)
        ok = ok & (((word >> (ids % 32)[:, None]) & 1) != 0)
    return tl.where(ok, z, float("-inf"))


@triton.jit(do_not_specialize=["N"], do_not_specialize_on_alignment=["temperature"])
def _vocab(
    h, embedding, weights, kept, peaks, masses, energies, bests, allowed, temperature, cap,
    N, V, MASK_ROW, FIRST, TILES, CHUNK,
    D: tl.constexpr, MASK: tl.constexpr, WEIGHTS: tl.constexpr, KEPT: tl.constexpr,
    BM: tl.constexpr, BV: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Ids from FIRST on. Of every tile [N, TILES]; WEIGHTS: also exp(z - the tile's peak), KEPT: also z, [N, CHUNK]."""
    r = tl.program_id(0) * BM + tl.arange(0, BM)  # neighbours read the same ids: a tile comes from memory once
    live = r < N
    local = tl.program_id(1) * BV + tl.arange(0, BV)
    ids = FIRST + local
    z = logits(h, embedding, r, live, ids, V, allowed, MASK_ROW, cap, temperature, D, MASK, True, BM, BV, BK)
    block = tl.program_id(0).to(tl.int64) * BM * CHUNK  # numbers in between fit 32 bits, and then the registers
    within = tl.arange(0, BM)[None, :] * CHUNK + local[:, None]
    if KEPT:
        tl.store(kept + block + within, z, mask=live[None, :])
    peak = tl.max(z, 0)
    best = tl.min(tl.where(z == peak[None, :], ids[:, None], 2147483647), 0)
    below = z - tl.where(peak == float("-inf"), 0.0, peak)[None, :]
    weight = tl.exp(below)  # 0 where z is -inf
    at = r.to(tl.int64) * TILES + FIRST // BV + tl.program_id(1)
    tl.store(peaks + at, peak, mask=live)
    tl.store(masses + at, tl.sum(weight, 0), mask=live)
    tl.store(energies + at, tl.sum(tl.where(weight > 0.0, weight * below, 0.0), 0), mask=live)
    tl.store(bests + at, best, mask=live)
    if WEIGHTS:
        tl.store(weights + block + within, weight.to(weights.dtype.element_ty), mask=live[None, :])


@triton.jit(do_not_specialize_on_alignment=["uniforms"])
def _summary(
    peaks, masses, energies, bests, uniforms, peak_out, total_out, logsumexp, entropy, argmax, tile_out, rest_out,
    TILES, SAMPLE: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """One position a program, over its tiles in order. Float64: entropies near 0 keep their relative accuracy.

    Where a logit is no number, neither are logsumexp and entropy; ids stay within the vocabulary."""
    row = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, B)
    peak = float("-inf")
    best = 0
    for first in range(0, TILES, B):
        here = tl.load(peaks + row * TILES + first + t, mask=first + t < TILES, other=float("-inf"))
        own = tl.max(here, 0)
        candidate = tl.load(bests + row * TILES + first + t, mask=(first + t < TILES) & (here == own), other=2147483647)
        best = tl.where(own > peak, tl.min(candidate, 0), best)
        peak = tl.maximum(peak, own)
    total = tl.full((), 0.0, tl.float64)
    energy = tl.full((), 0.0, tl.float64)
    for first in range(0, TILES, B):
        at, ok = row * TILES + first + t, first + t < TILES
        shift = tl.load(peaks + at, mask=ok, other=float("-inf")).to(tl.float64) - peak
        live = tl.exp(shift)
        mass = tl.load(masses + at, mask=ok, other=0.0).to(tl.float64)
        own = tl.load(energies + at, mask=ok, other=0.0).to(tl.float64)
        total += tl.sum(live * mass, 0)
        energy += tl.sum(tl.where(live > 0.0, live * (own + mass * shift), 0.0), 0)
    tl.store(peak_out + row, peak)
    tl.store(total_out + row, total)
    tl.store(logsumexp + row, (peak + tl.log(total)).to(tl.float32))
    nats = tl.log(total) - energy / total
    tl.store(entropy + row, tl.where(nats < 0.0, 0.0, nats).to(tl.float32))  # a maximum would hide what is no number
    tl.store(argmax + row, best)
    if SAMPLE:
        target = tl.load(uniforms + row) * total
        before = tl.full((), 0.0, tl.float64)  # mass of the tiles so far
        passed = 0  # tiles whose cumulative mass is ≤ target
        skipped = tl.full((), 0.0, tl.float64)  # mass of those
        last = 0  # the last tile with any mass: rounding may leave none beyond the target
        last_before = tl.full((), 0.0, tl.float64)
        for first in range(0, TILES, B):
            at, ok = row * TILES + first + t, first + t < TILES
            shift = tl.load(peaks + at, mask=ok, other=float("-inf")).to(tl.float64) - peak
            mass = tl.exp(shift) * tl.load(masses + at, mask=ok, other=0.0).to(tl.float64)
            cumulative = before + tl.cumsum(mass, 0)
            under = ok & (cumulative <= target)
            passed += tl.sum(under.to(tl.int32), 0)
            skipped = tl.maximum(skipped, tl.max(tl.where(under, cumulative, 0.0), 0))
            last = tl.maximum(last, tl.max(tl.where(mass > 0.0, first + t, 0), 0))
            last_before = tl.maximum(last_before, tl.max(tl.where(mass > 0.0, cumulative - mass, 0.0), 0))
            before += tl.sum(mass, 0)
        tl.store(tile_out + row, tl.minimum(passed, last))
        tl.store(rest_out + row, target - tl.where(passed > last, last_before, skipped))


@triton.jit(do_not_specialize_on_alignment=["temperature"])
def _pick(
    h, embedding, tiles, rest, peaks, sample, allowed, temperature, cap, V, MASK_ROW,
    D: tl.constexpr, MASK: tl.constexpr, COLUMNS: tl.constexpr, BV: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One position a program: the first id of its tile whose cumulative weight exceeds what is left of its target."""
    row = tl.program_id(0)
    r = row + tl.zeros((COLUMNS,), tl.int32)  # the tensor core takes no single column; one of these counts
    only = tl.arange(0, COLUMNS) == 0
    ids = tl.load(tiles + row) * BV + tl.arange(0, BV)
    z = logits(h, embedding, r, only, ids, V, allowed, MASK_ROW, cap, temperature, D, MASK, True, COLUMNS, BV, BK)
    own = tl.sum(tl.where(only[None, :], z, 0.0), 1)
    weight = tl.exp(own.to(tl.float64) - tl.load(peaks + row))
    beyond = tl.cumsum(weight, 0) > tl.load(rest + row)
    first = tl.min(tl.where(beyond & (weight > 0.0), ids, 2147483647), 0)
    last = tl.max(tl.where(weight > 0.0, ids, 0), 0)
    tl.store(sample + row, tl.minimum(first, last).to(tl.int64))


@triton.jit(do_not_specialize=["COUNT"], do_not_specialize_on_alignment=["temperature"])
def _again(
    h, embedding, tiles, out, allowed, temperature, cap, V, MASK_ROW, COUNT,
    D: tl.constexpr, MASK: tl.constexpr, COLUMNS: tl.constexpr, BV: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out [N, COUNT, BV]: the logits of tiles [N, COUNT] of each position."""
    row, which = tl.program_id(0), tl.program_id(1)
    r = row + tl.zeros((COLUMNS,), tl.int32)
    only = tl.arange(0, COLUMNS) == 0
    ids = tl.load(tiles + row * COUNT + which) * BV + tl.arange(0, BV)
    z = logits(h, embedding, r, only, ids, V, allowed, MASK_ROW, cap, temperature, D, MASK, True, COLUMNS, BV, BK)
    at = (row.to(tl.int64) * COUNT + which) * BV + tl.arange(0, BV)
    tl.store(out + at, tl.sum(tl.where(only[None, :], z, 0.0), 1))


@triton.jit(do_not_specialize=["COUNT"], do_not_specialize_on_alignment=["temperature"])
def _members(
    h, embedding, rows, ids, out, allowed, temperature, cap, V, MASK_ROW, COUNT,
    D: tl.constexpr, MASK: tl.constexpr, COLUMNS: tl.constexpr, BV: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out [k, COUNT]: the logits of ids [k, COUNT] at positions rows [k]; -inf where the id is -1."""
    which = tl.program_id(0).to(tl.int64)
    r = tl.load(rows + which).to(tl.int32) + tl.zeros((COLUMNS,), tl.int32)
    only = tl.arange(0, COLUMNS) == 0
    i = tl.program_id(1) * BV + tl.arange(0, BV)
    own = tl.load(ids + which * COUNT + i, mask=i < COUNT, other=-1)
    own = tl.where(own < 0, V, own)  # beyond the vocabulary
    z = logits(h, embedding, r, only, own, V, allowed, MASK_ROW, cap, temperature, D, MASK, False, COLUMNS, BV, BK)
    tl.store(out + which * COUNT + i, tl.sum(tl.where(only[None, :], z, 0.0), 1), mask=i < COUNT)


@triton.jit
def _pack(allowed, out, ROW, V, WORDS, B: tl.constexpr):
    """bool [rows, V] -> bits, 32 ids a word: [rows, WORDS] int32."""
    row = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * B + tl.arange(0, B)
    bit = tl.arange(0, 32)
    ids = word[:, None] * 32 + bit[None, :]
    value = tl.load(allowed + row * ROW + ids, mask=ids < V, other=0).to(tl.int32)
    tl.store(out + row * WORDS + word, tl.sum((value & 1) << bit[None, :], 1), mask=word < WORDS)


def packed(allowed: Tensor) -> Tensor:
    """bool [n, V] or [V] -> int32 [n, ⌈V / 32⌉] or [⌈V / 32⌉]: id i is bit i % 32 of word i // 32."""
    rows = allowed.view(1, -1) if allowed.ndim == 1 else allowed
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    words = blocks(rows.shape[1], 32)
    out = torch.empty(rows.shape[0], words, dtype=torch.int32, device=allowed.device)
    arguments = (rows.view(torch.uint8), out, rows.stride(0), rows.shape[1], words)
    launch("pack", _pack, (rows.shape[0], blocks(words, 128)), arguments, B=128)
    return out[0] if allowed.ndim == 1 else out


def vocab_head(hidden: Tensor, embedding: Tensor, query: VocabQuery, *, cap: float) -> VocabResult:
    """The contract of `Ops.vocab_head`, which see. allowed may also be bits as `packed` makes them, int32."""
    from scumble.ops.triton import vocab_classes, vocab_soft

    temperature, uniforms, allowed, targets = query.temperature, query.uniforms, query.allowed, query.targets
    n, size = hidden.shape
    vocab, cap = embedding.shape[0], float(cap)  # a whole number would be another type to the compiler
    device = hidden.device
    if isinstance(temperature, Tensor):
        temperatures = temperature.to(device, torch.float32).expand(n).contiguous()
    else:  # a number made on the card: sending one there would wait
        temperatures = torch.full((n,), temperature, dtype=torch.float32, device=device)
    if allowed is not None and allowed.dtype is torch.bool:
        allowed = packed(allowed)
    if allowed is not None and query.mask is not None:
        allowed = allowed[query.mask]
    mask_row = allowed.stride(0) if allowed is not None and allowed.ndim == 2 else 0
    mask = hidden if allowed is None else allowed
    constants = {"D": size, "MASK": EVERYTHING if allowed is None else MASKED}

    width = tiles_for("vocab", device)["BV"]
    tiles = blocks(vocab, width)
    peaks, masses, energies = (torch.empty(n, tiles, dtype=torch.float32, device=device) for _ in range(3))
    bests = torch.empty(n, tiles, dtype=torch.int32, device=device)
    statistics = peaks, masses, energies, bests

    soft = vocab_soft.Soft(n, vocab, width, hidden, embedding) if query.want_soft else None
    chunk = vocab_soft.chunk_of(vocab, width) if soft is not None or query.classes else blocks(vocab, width) * width
    weights = None if soft is None else soft.weights
    kept = torch.empty(n, chunk, dtype=torch.float32, device=device) if query.classes else None

    def members(which: Tensor, ids: Tensor) -> Tensor:
        out = torch.empty(ids.shape, dtype=torch.float32, device=device)
        grid = ids.shape[0], blocks(ids.shape[1], width)
        arguments = (hidden, embedding, which, ids, out, mask, temperatures, cap, vocab, mask_row, ids.shape[1])
        launch("members", _members, grid, arguments, BV=width, **constants)
        return out

    classes = [vocab_classes.CardClasses(one, chunk, device, members) for one in query.classes]
    for first in range(0, vocab, chunk):
        grid = blocks(n, tiles_for("vocab", device)["BM"]), blocks(min(vocab - first, chunk), width)
        arguments = (
            hidden, embedding, hidden if weights is None else weights, hidden if kept is None else kept, *statistics,
            mask, temperatures, cap, n, vocab, mask_row, first, tiles, chunk,
        )  # fmt: skip
        launch("vocab", _vocab, grid, arguments, WEIGHTS=soft is not None, KEPT=kept is not None, **constants)
        if soft is not None:
            soft.add(first, peaks)
        if kept is not None:
            for one in classes:
                one.add(first, kept)
    for one in classes:
        one.finish()

    peak, total = (torch.empty(n, dtype=torch.float64, device=device) for _ in range(2))
    logsumexp, entropy = (torch.empty(n, dtype=torch.float32, device=device) for _ in range(2))
    argmax = torch.empty(n, dtype=torch.int64, device=device)
    tile = torch.empty(n, dtype=torch.int32, device=device)
    rest = torch.empty(n, dtype=torch.float64, device=device)
    uniform = total if uniforms is None else uniforms.to(torch.float64).contiguous()
    arguments = (*statistics, uniform, peak, total, logsumexp, entropy, argmax, tile, rest, tiles)
    launch("summary", _summary, (n,), arguments, SAMPLE=uniforms is not None, B=min(1024, power_of_two(tiles)))

    def again(which: Tensor) -> Tensor:
        """Logits [n, m, width] of tiles which [n, m]."""
        out = torch.empty(*which.shape, width, dtype=torch.float32, device=device)
        arguments = (
            hidden, embedding, which.to(torch.int32).contiguous(), out, mask, temperatures, cap, vocab, mask_row,
            which.shape[1],
        )  # fmt: skip
        launch("again", _again, (n, which.shape[1]), arguments, BV=width, **constants)
        return out

    sample = top_ids = top_logprobs = own = None
    if uniforms is not None:
        sample = torch.empty(n, dtype=torch.int64, device=device)
        arguments = (hidden, embedding, tile, rest, peak, sample, mask, temperatures, cap, vocab, mask_row)
        launch("pick", _pick, (n,), arguments, BV=width, **constants)
    if query.top:
        # The best `top` ids lie in the `top` tiles with the highest peaks.
        highest = peaks.topk(min(query.top, tiles), dim=-1).indices
        ids = highest[..., None] * width + torch.arange(width, device=device)
        best, place = again(highest).flatten(1).topk(query.top, dim=-1)
        top_ids, top_logprobs = ids.flatten(1).gather(1, place), best - logsumexp[:, None]
    if targets is not None:
        own = again((targets // width)[:, None])[:, 0].gather(1, (targets % width)[:, None])[:, 0] - logsumexp
    settled = None if soft is None else soft.settled(total)
    return VocabResult(logsumexp, entropy, argmax, sample, settled, top_ids, top_logprobs, own, tuple(classes))

"""Which slots each expert works on: a stable sort by expert, and its cut into tiles. Whole numbers only, no atomics.

count[e] = how many of the T·k slots chose e
place of slot s that chose e = Σ_{e' < e} count[e'] + how many earlier slots chose e
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from scumble.ops.triton.launch import blocks, launch, power_of_two, tiles_for

CHUNK = 1024  # slots a program looks at in one go


@dataclass(frozen=True)
class Groups:
    """order [T·k]: slots sorted by expert, stable. Of each launch tile its expert, first place in `order` and number of
    slots (0: nothing to do). All int32."""

    order: Tensor
    tile_expert: Tensor
    tile_first: Tensor
    tile_count: Tensor


@triton.jit(do_not_specialize=["SLOTS"])
def _sort(chosen, order, counts, SLOTS, CHUNK: tl.constexpr):
    """One expert a program: it counts who comes before its run, then places its own slots one after another."""
    expert = tl.program_id(0)
    i = tl.arange(0, CHUNK)
    before = 0
    for first in range(0, SLOTS, CHUNK):
        e = tl.load(chosen + first + i, mask=first + i < SLOTS, other=2147483647)
        before += tl.sum((e < expert).to(tl.int32), 0)
    own = 0
    for first in range(0, SLOTS, CHUNK):
        e = tl.load(chosen + first + i, mask=first + i < SLOTS, other=2147483647)
        mine = (e == expert).to(tl.int32)
        place = before + own + tl.cumsum(mine, 0) - mine
        tl.store(order + place, first + i, mask=mine != 0)
        own += tl.sum(mine, 0)
    tl.store(counts + expert, own)


@triton.jit(do_not_specialize=["TILES"])
def _cut(
    counts, tile_expert, tile_first, tile_count, EXPERTS, TILES, SIZE: tl.constexpr, E: tl.constexpr, BT: tl.constexpr
):
    """BT launch tiles a program. Tile t belongs to the expert in whose run of ⌈count / SIZE⌉ tiles it lies."""
    e = tl.arange(0, E)
    count = tl.load(counts + e, mask=e < EXPERTS, other=0)
    need = (count + SIZE - 1) // SIZE
    tile_end = tl.cumsum(need, 0)
    slot_end = tl.cumsum(count, 0)
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    inside = (t[:, None] >= (tile_end - need)[None, :]) & (t[:, None] < tile_end[None, :])  # one expert a tile, or none
    pick = inside.to(tl.int32)
    expert = tl.sum(pick * e[None, :], 1)
    skipped = (t - tl.sum(pick * (tile_end - need)[None, :], 1)) * SIZE
    left = tl.sum(pick * count[None, :], 1) - skipped
    any_expert = tl.sum(pick, 1) > 0
    tl.store(tile_expert + t, expert, mask=t < TILES)
    tl.store(tile_first + t, tl.sum(pick * (slot_end - count)[None, :], 1) + skipped, mask=t < TILES)
    tl.store(tile_count + t, tl.where(any_expert, tl.minimum(left, SIZE), 0), mask=t < TILES)


def group(chosen: Tensor, experts: int, format: str) -> Groups:
    """chosen [T, k]: the experts of every token, int32 or int64. format: of the experts' weights; it decides the tiles'
    size."""
    device = chosen.device
    slots = chosen.numel()
    size = tiles_for(f"up {format}", device)["BM"]
    tiles = experts + slots // size  # never fewer than needed: every expert ends with at most one short tile
    order = torch.empty(slots, dtype=torch.int32, device=device)
    counts = torch.empty(experts, dtype=torch.int32, device=device)
    launch("sort", _sort, (experts,), (chosen, order, counts, slots), CHUNK=CHUNK)
    expert, first, count = (torch.empty(tiles, dtype=torch.int32, device=device) for _ in range(3))
    launch(
        "cut", _cut, (blocks(tiles, 32),), (counts, expert, first, count, experts, tiles), SIZE=size,
        E=power_of_two(experts), BT=32,
    )  # fmt: skip
    return Groups(order, expert, first, count)


def group_reference(chosen: Tensor, experts: int, size: int) -> Groups:
    """The same with a loop over experts."""
    flat = chosen.flatten()
    order = flat.argsort(stable=True).to(torch.int32)
    tiles = experts + flat.shape[0] // size
    expert, first, count = (torch.zeros(tiles, dtype=torch.int32) for _ in range(3))
    tile = place = 0
    for e in range(experts):
        left = int((flat == e).sum())
        while left > 0:
            expert[tile], first[tile], count[tile] = e, place, min(left, size)
            place += min(left, size)
            left -= size
            tile += 1
    return Groups(order, *(t.to(chosen.device) for t in (expert, first, count)))

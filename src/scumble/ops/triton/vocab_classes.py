"""The vocabulary operator's statistics by classes of ids (ops/classes.py), for canvases under a structure.

The operator's sweep leaves z of a chunk of ids [n, CHUNK]. The ids of a chunk are listed class by class, and the run of
each class is cut into pieces of at most PIECE ids:

1. "pieces": peak, mass, energy and lowest best id of a piece and position, as "vocab" has them of its tiles.
2. "classes": the pieces of a class, in the order of their ids, as one. This alone goes to the host: [n, classes].

A draw looks at the masses of its class's pieces, and has the logits of one piece made again ("members").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from scumble.ops.classes import Classified, ClassStatistics, TokenClasses, choose
from scumble.ops.triton.launch import blocks, launch

PIECE = 1024  # ids


@dataclass(frozen=True)
class Pieces:
    """ids [m] by chunk and class, ascending; piece p has those at begins[p] … begins[p + 1] - 1, class k has the pieces
    order[firsts[k]] … order[firsts[k + 1] - 1]. by_chunk: the first piece of every chunk, and the number of all.
    there: ids, begins, order and firsts on the device, int32."""

    ids: np.ndarray
    begins: np.ndarray
    order: np.ndarray
    firsts: np.ndarray
    by_chunk: list[int]
    there: tuple[Tensor, Tensor, Tensor, Tensor]

    def of(self, kind: int) -> np.ndarray:
        """The pieces of a class."""
        return self.order[self.firsts[kind] : self.firsts[kind + 1]]


_made: WeakKeyDictionary[TokenClasses, dict[tuple[int, int, torch.device], Pieces]] = WeakKeyDictionary()


def pieces(classes: TokenClasses, chunk: int, device: torch.device) -> Pieces:
    """Of a vocabulary that is swept in chunks of so many ids. Made once for these classes."""
    known = _made.setdefault(classes, {})
    if (chunk, PIECE, device) not in known:
        known[chunk, PIECE, device] = _cut(classes, chunk, device)
    return known[chunk, PIECE, device]


def _cut(classes: TokenClasses, chunk: int, device: torch.device) -> Pieces:
    asked = np.flatnonzero(classes.of_token > 0)
    run = asked // chunk * classes.count + classes.of_token[asked]  # a number for each class in each chunk
    in_order = np.argsort(run, kind="stable")
    ids, run = asked[in_order], run[in_order]
    heads = np.flatnonzero(np.concatenate(([True], run[1:] != run[:-1]))) if len(run) else run
    place = np.arange(len(run)) - np.repeat(heads, np.diff(np.append(heads, len(run))))  # in its run
    cuts = np.flatnonzero(place % PIECE == 0)
    begins, kinds = np.append(cuts, len(ids)), run[cuts] % classes.count
    order = np.argsort(kinds, kind="stable")
    firsts = np.searchsorted(kinds[order], np.arange(classes.count + 1))
    chunks = np.arange(blocks(len(classes.of_token), chunk) + 1)
    by_chunk = np.searchsorted(run[cuts], chunks * classes.count).tolist()

    a, b, c, d = (torch.from_numpy(part.astype(np.int32)).to(device) for part in (ids, begins, order, firsts))
    return Pieces(ids, begins, order, firsts, by_chunk, (a, b, c, d))


@triton.jit(do_not_specialize=["N", "PIECE", "PIECES"])
def _pieces(
    z, ids, begins, peaks, masses, energies, bests, N, FIRST, CHUNK, PIECE, PIECES,
    B: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """A piece, counted from PIECE on, and BP positions a program. z [N, CHUNK] of ids FIRST …; out [N, PIECES]."""
    piece = PIECE + tl.program_id(0)
    r = tl.program_id(1) * BP + tl.arange(0, BP)
    row = r.to(tl.int64)
    i = tl.arange(0, B)
    begin, end = tl.load(begins + piece), tl.load(begins + piece + 1)
    peak = tl.full((BP,), float("-inf"), tl.float32)
    best = tl.full((BP,), 2147483647, tl.int32)
    for first in range(begin, end, B):
        ok = (r < N)[:, None] & (first + i < end)[None, :]
        id = tl.load(ids + first + i, mask=first + i < end, other=FIRST)
        value = tl.load(z + row[:, None] * CHUNK + (id - FIRST)[None, :], mask=ok, other=float("-inf"))
        top = tl.max(value, 1)
        lowest = tl.min(tl.where(ok & (value == top[:, None]), id[None, :], 2147483647), 1)
        best = tl.where(top > peak, lowest, best)
        peak = tl.maximum(peak, top)
    base = tl.where(peak == float("-inf"), 0.0, peak)[:, None]
    mass = tl.zeros((BP,), tl.float32)
    energy = tl.zeros((BP,), tl.float32)
    for first in range(begin, end, B):
        ok = (r < N)[:, None] & (first + i < end)[None, :]
        id = tl.load(ids + first + i, mask=first + i < end, other=FIRST)
        below = tl.load(z + row[:, None] * CHUNK + (id - FIRST)[None, :], mask=ok, other=float("-inf")) - base
        weight = tl.exp(below)
        mass += tl.sum(weight, 1)
        energy += tl.sum(tl.where(weight > 0.0, weight * below, 0.0), 1)
    at = row * PIECES + piece
    tl.store(peaks + at, peak, mask=r < N)
    tl.store(masses + at, mass, mask=r < N)
    tl.store(energies + at, energy, mask=r < N)
    tl.store(bests + at, best, mask=r < N)


@triton.jit(do_not_specialize=["N", "PIECES", "COUNT"])
def _classes(
    peaks, masses, energies, bests, order, firsts, peak_out, total_out, energy_out, best_out, N, PIECES, COUNT,
    BP: tl.constexpr,
):  # fmt: skip
    """A class and BP positions a program; out [N, COUNT]. Sums in float64."""
    kind = tl.program_id(0)
    r = tl.program_id(1) * BP + tl.arange(0, BP)
    row = r.to(tl.int64)
    begin, end = tl.load(firsts + kind), tl.load(firsts + kind + 1)
    peak = tl.full((BP,), float("-inf"), tl.float32)
    best = tl.full((BP,), -1, tl.int32)
    for i in range(begin, end):
        at = row * PIECES + tl.load(order + i)
        top = tl.load(peaks + at, mask=r < N, other=float("-inf"))
        best = tl.where(top > peak, tl.load(bests + at, mask=r < N, other=-1), best)
        peak = tl.maximum(peak, top)
    base = tl.where(peak == float("-inf"), 0.0, peak).to(tl.float64)
    total = tl.zeros((BP,), tl.float64)
    energy = tl.zeros((BP,), tl.float64)
    for i in range(begin, end):
        at = row * PIECES + tl.load(order + i)
        shift = tl.load(peaks + at, mask=r < N, other=float("-inf")).to(tl.float64) - base
        mass = tl.load(masses + at, mask=r < N, other=0.0).to(tl.float64)
        own = tl.load(energies + at, mask=r < N, other=0.0).to(tl.float64)
        factor = tl.exp(shift)
        total += factor * mass
        energy += tl.where(factor > 0.0, factor * (own + mass * shift), 0.0)
    at = row * COUNT + kind
    tl.store(peak_out + at, peak, mask=r < N)
    tl.store(total_out + at, total, mask=r < N)
    tl.store(energy_out + at, energy, mask=r < N)
    tl.store(best_out + at, best, mask=r < N)


class CardClasses(ClassStatistics):
    """Statistics of positions asked.first … asked.last - 1 of a call.

    members: z of some ids at each of k positions of the call: int64 [k] and int32 [k, m] -> float32 [k, m].
    """

    def __init__(
        self, asked: Classified, chunk: int, device: torch.device, members: Callable[[Tensor, Tensor], Tensor]
    ):
        super().__init__(asked.classes, asked.last - asked.first)
        self.asked, self.chunk, self.members = asked, chunk, members
        self.pieces = pieces(asked.classes, chunk, device)
        shape = self.positions, self.pieces.by_chunk[-1]
        self.peaks, self.masses, self.energies = (
            torch.empty(shape, dtype=torch.float32, device=device) for _ in range(3)
        )
        self.bests = torch.empty(shape, dtype=torch.int32, device=device)

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.peaks, self.masses, self.energies, self.bests

    def add(self, first: int, z: Tensor) -> None:
        """z [n, chunk] of the whole call: of ids `first` on, a multiple of the chunk."""
        number, cut = first // self.chunk, self.pieces
        begin, end = cut.by_chunk[number], cut.by_chunk[number + 1]
        own = z[self.asked.first : self.asked.last]
        arguments = (
            own, *cut.there[:2], *self._parts, own.shape[0], first, z.stride(0), begin, self.peaks.shape[1]
        )  # fmt: skip
        launch("pieces", _pieces, (end - begin, blocks(own.shape[0], 4)), arguments, B=128, BP=4)

    def finish(self) -> None:
        self.peak, self.total, self.energy, self.best_id = (part.cpu().numpy() for part in self.joined())
        super().finish()

    def joined(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Peak, mass, energy and best id by class [n, count], once all chunks are in."""
        shape, device = (self.positions, self.classes.count), self.peaks.device
        peak = torch.empty(shape, dtype=torch.float32, device=device)
        total, energy = (torch.empty(shape, dtype=torch.float64, device=device) for _ in range(2))
        best = torch.empty(shape, dtype=torch.int32, device=device)
        cut, (n, count) = self.pieces, shape
        arguments = (
            *self._parts, *cut.there[2:], peak, total, energy, best, n, self.peaks.shape[1], count
        )  # fmt: skip
        launch("classes", _classes, (count, blocks(n, 32)), arguments, BP=32)
        return peak, total, energy, best

    def _drawn(self, rows: np.ndarray, chosen: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """The piece by its mass; then its logits are made again."""
        device, cut = self.peaks.device, self.pieces
        here = torch.from_numpy(rows).to(device)
        tops, masses = (part[here].double().cpu().numpy() for part in (self.peaks, self.masses))
        wanted, rest = np.full((len(rows), PIECE), -1, np.int32), []
        for i, (kind, uniform) in enumerate(zip(chosen.tolist(), uniforms.tolist(), strict=True)):
            mine = cut.of(kind)
            mine = mine[masses[i, mine] > 0]
            logs = tops[i, mine] + np.log(masses[i, mine])
            at, left = choose(np.exp(logs - logs.max()), uniform)
            own = cut.ids[cut.begins[mine[at]] : cut.begins[mine[at] + 1]]
            wanted[i, : len(own)] = own
            rest.append(left)
        z = self.members(here + self.asked.first, torch.from_numpy(wanted).to(device)).double().cpu().numpy()
        found = [choose(np.exp(own - own.max()), left)[0] for own, left in zip(z, rest, strict=True)]
        return wanted[np.arange(len(rows)), found].astype(np.int64)

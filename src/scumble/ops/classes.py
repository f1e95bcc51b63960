"""The vocabulary operator's statistics by classes of ids, for canvases under a structure (see structure/law.py).

They are taken in the operator's own sweep over the vocabulary, tile by tile. Inside a tile the ids are put in order of
their class, so each class is one run, and runs are reduced: peak, mass and energy per position and class, each relative
to the class's own peak, so a class that is improbable by hundreds of nats keeps its mass. Nothing of size [n, V] is
held; what is kept for draws is two numbers for each run of each tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Logits = Callable[[Tensor, int], Tensor]
"""(positions, first id of a tile) -> z of the tile's ids, float32 [positions, ids]"""


@dataclass(frozen=True)
class Runs:
    """The ids of one tile in order of their class: order [w] int32 columns, begins [k + 1], kinds [k] classes."""

    order: np.ndarray
    begins: np.ndarray
    kinds: np.ndarray


class TokenClasses:
    """Classes of the ids of a vocabulary. of_token [V] ints in 0 … count - 1; class 0 is never asked about."""

    def __init__(self, of_token: np.ndarray, count: int) -> None:
        self.of_token, self.count = of_token.astype(np.int64), count
        sizes = np.bincount(self.of_token, minlength=count)
        kinds, firsts = np.unique(self.of_token, return_index=True)
        self.only = np.full(count, -1, np.int64)  # the id of a class that has no other
        self.only[kinds] = np.where(sizes[kinds] == 1, firsts, -1)
        self._runs: dict[int, list[Runs]] = {}

    def runs(self, tile: int) -> list[Runs]:
        """By tile of so many ids."""
        if tile not in self._runs:
            self._runs[tile] = [
                _runs(self.of_token[first : first + tile]) for first in range(0, len(self.of_token), tile)
            ]
        return self._runs[tile]


@dataclass(frozen=True)
class Classified:
    """That positions first … last - 1 of a call are to have statistics by these classes."""

    classes: TokenClasses
    first: int
    last: int


def _runs(of_column: np.ndarray) -> Runs:
    order = np.argsort(of_column, kind="stable")
    order = order[of_column[order] > 0]
    ordered = of_column[order]
    heads = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(order) else order
    begins = np.append(heads, len(order)).astype(np.int32)
    return Runs(order.astype(np.int32), begins, ordered[heads].astype(np.int32))


class ClassStatistics:
    """Of n positions by class, each [n, count] float64, once the sweep is over:

    mass: log Σ exp z of the class's ids, -inf for none. entropy: nats, of the ids inside the class.
    best: z of its most probable id. Ids that are not allowed have no mass.
    """

    mass: np.ndarray
    entropy: np.ndarray
    best: np.ndarray

    def __init__(self, classes: TokenClasses, positions: int) -> None:
        shape = positions, classes.count
        self.classes, self.positions = classes, positions
        self.peak = np.full(shape, -np.inf, np.float32)
        self.total, self.energy = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.best_id = np.full(shape, -1, np.int32)

    def finish(self) -> None:
        """All tiles are in."""
        some, total = self.total > 0, self.total.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(total)
            self.mass = np.where(some, self.peak + logs, -np.inf)
            self.entropy = np.where(some, np.maximum(logs - self.energy / total, 0.0), 0.0)
            self.best = np.where(some, self.peak.astype(np.float64), -np.inf)

    def best_ids(self, rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """The most probable id of one class [k] at each of k positions; -1 where the class is 0."""
        return np.where(chosen > 0, self.best_id[rows, chosen], -1).astype(np.int64)

    def draw(self, rows: np.ndarray, chosen: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """One id out of one class [k] at each of k positions, by inverse CDF over its ids in ascending order; -1 where
        the class is 0."""
        ids = np.where(chosen > 0, self.classes.only[chosen], -1)
        unsure = np.flatnonzero((chosen > 0) & (ids < 0))
        if len(unsure):
            ids[unsure] = self._drawn(rows[unsure], chosen[unsure], uniforms[unsure].astype(np.float64))
        return ids

    def _drawn(self, rows: np.ndarray, chosen: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """`draw` of classes that have several ids."""
        raise NotImplementedError


class ClassSweep(ClassStatistics):
    """The same in plain numpy, from tiles of z."""

    def __init__(self, classes: TokenClasses, positions: int, tile: int, logits: Logits) -> None:
        """logits: to compute a tile again for some of the positions."""
        super().__init__(classes, positions)
        self.tile, self.logits = tile, logits
        self.runs = classes.runs(tile)
        self.kept: list[tuple[np.ndarray, np.ndarray]] = []  # by tile: peak and mass relative to it, of each run [n, k]

    def add(self, z: Tensor) -> None:
        """The next tile's z [n, ids], float32."""
        number = len(self.kept)
        runs, n = self.runs[number], self.positions
        kinds = runs.kinds
        if not len(kinds):
            nothing = np.empty((n, 0), np.float32)
            self.kept.append((nothing, nothing))
            return
        ordered = z.cpu().numpy()[:, runs.order]
        heads, lengths = runs.begins[:-1], np.diff(runs.begins)
        top = np.maximum.reduceat(ordered, heads, axis=1)
        shifted = ordered - np.repeat(np.where(np.isneginf(top), np.float32(0), top), lengths, axis=1)
        weights = np.exp(shifted)
        mass = np.add.reduceat(weights, heads, axis=1)
        terms = np.add.reduceat(weights * np.where(weights > 0, shifted, np.float32(0)), heads, axis=1)
        columns = np.where(shifted == 0, runs.order, np.int32(self.tile))
        best_id = number * self.tile + np.minimum.reduceat(columns, heads, axis=1)
        old, before = self.peak[:, kinds], self.total[:, kinds]
        new = np.maximum(old, top)
        with np.errstate(invalid="ignore"):
            fall = np.where(before > 0, old - new, np.float32(0))
            rise = np.where(mass > 0, top - new, np.float32(0))
        left, right = np.exp(fall) * before, np.exp(rise) * mass
        self.energy[:, kinds] = np.exp(fall) * self.energy[:, kinds] + fall * left + np.exp(rise) * terms + rise * right
        self.total[:, kinds], self.peak[:, kinds] = left + right, new
        self.best_id[:, kinds] = np.where(top > old, best_id, self.best_id[:, kinds])
        self.kept.append((top, mass))

    def _drawn(self, rows: np.ndarray, chosen: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Tile by tile in which ids lie, that tile is computed again."""
        found = [self._tile(*one) for one in zip(rows.tolist(), chosen.tolist(), uniforms.tolist(), strict=True)]
        tiles, ids = np.array([tile for tile, _ in found]), np.empty(len(rows), np.int64)
        for tile in np.unique(tiles).tolist():
            here, first = np.flatnonzero(tiles == tile), tile * self.tile
            z = self.logits(torch.from_numpy(rows[here]), first).double().cpu().numpy()
            own = self.classes.of_token[first : first + self.tile]
            for at, values in zip(here.tolist(), z, strict=True):
                members = np.flatnonzero(own == chosen[at])
                weights = np.exp(values[members] - values[members].max())
                ids[at] = first + members[choose(weights, found[at][1])[0]]
        return ids

    def _tile(self, row: int, kind: int, uniform: float) -> tuple[int, float]:
        """The tile into which a uniform falls, by the mass that the class has in each, and what is left of it."""
        logs, tiles = [], []
        for number, runs in enumerate(self.runs):
            run = int(np.searchsorted(runs.kinds, kind))
            if run < len(runs.kinds) and runs.kinds[run] == kind:
                top, mass = (values[row, run] for values in self.kept[number])
                if mass > 0:
                    logs.append(float(top) + np.log(float(mass)))
                    tiles.append(number)
        at, left = choose(np.exp(np.array(logs) - max(logs)), uniform)
        return tiles[at], left


def choose(weights: np.ndarray, uniform: float) -> tuple[int, float]:
    """Inverse CDF over weights -> the index, and the uniform's place inside its weight, in [0, 1)."""
    running = np.cumsum(weights)
    target = uniform * running[-1]
    index = int(np.searchsorted(running, target, side="right"))
    if index >= len(weights) or weights[index] == 0:  # rounding at the far end
        index = int(np.flatnonzero(weights)[-1])
    inside = (target - (running[index] - weights[index])) / weights[index]
    return index, float(min(max(inside, 0.0), np.nextafter(1.0, 0.0)))

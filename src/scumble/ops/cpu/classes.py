"""Statistics by classes of ids with native kernels (src/classes.h, src/classes.cpp), in the sweep of cpu/vocab.py."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from scumble.ops.classes import Classified, ClassStatistics, TokenClasses
from scumble.ops.cpu.native import ClassTile

FIELD = {field[0]: place for place, field in enumerate(ClassTile._fields_)}


@dataclass(frozen=True)
class Layout:
    """All tiles of a vocabulary's classes. order, begins, kinds: those of the tiles (classes.py: Runs), one tile after
    another. place [count, tiles] int32: which run of a tile a class is, or -1. table [tiles, fields] int64: what of
    ClassTile does not change from call to call."""

    order: np.ndarray
    begins: np.ndarray
    kinds: np.ndarray
    place: np.ndarray
    table: np.ndarray

    @property
    def tiles(self) -> int:
        return len(self.table)

    @property
    def all_runs(self) -> int:
        return len(self.kinds)


@lru_cache(maxsize=64)
def layout(classes: TokenClasses, tile: int) -> Layout:
    runs = classes.runs(tile)
    order, begins, kinds = (
        np.concatenate([getattr(one, name) for one in runs]) for name in ("order", "begins", "kinds")
    )
    place = np.full((classes.count, len(runs)), -1, np.int32)
    for number, one in enumerate(runs):
        place[one.kinds, number] = np.arange(len(one.kinds))
    table = np.zeros((len(runs), len(FIELD)), np.int64)
    before = np.cumsum([(0, 0, 0), *((len(one.order), len(one.begins), len(one.kinds)) for one in runs)], axis=0)[:-1]
    for column, array in enumerate((order, begins, kinds)):
        table[:, FIELD[("order", "begins", "kinds")[column]]] = array.ctypes.data + 4 * before[:, column]
    table[:, FIELD["runs"]] = [len(one.kinds) for one in runs]
    table[:, FIELD["from"]], table[:, FIELD["all_runs"]] = before[:, 2], len(kinds)
    table[:, FIELD["count"]] = classes.count
    return Layout(order, begins, kinds, place, table)


class NativeClasses(ClassStatistics):
    """Filled by scumble_vocab_tile."""

    def __init__(self, asked: Classified, tile: int) -> None:
        n = asked.last - asked.first
        super().__init__(asked.classes, n)
        self.tile, self.layout = tile, layout(asked.classes, tile)
        self.tops, self.sums = np.empty((2, n, self.layout.all_runs), np.float32)
        self.table = self.layout.table.copy()
        arrays = {
            "peak": self.peak, "total": self.total, "energy": self.energy, "best": self.best_id, "tops": self.tops,
            "sums": self.sums,
        }  # fmt: skip
        for name, array in arrays.items():
            self.table[:, FIELD[name]] = array.ctypes.data
        self.table[:, FIELD["begin"]], self.table[:, FIELD["end"]] = asked.first, asked.last

    def drawn_by(self, lib: ctypes.CDLL, head: int, state: int, threads: int, holds: object) -> None:
        """Addresses of the sweep's VocabHead and VocabState, for draws later; holds: what must live as long."""
        self._call = lib, head, state, threads
        self._holds = holds

    def _drawn(self, rows: np.ndarray, chosen: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        lib, head, state, threads = self._call
        ids = np.empty(len(rows), np.int64)
        given = [np.ascontiguousarray(one, np.int64) for one in (rows, chosen)]
        lib.scumble_class_draw(
            head, state, self.table.ctypes.data, self.layout.place.ctypes.data, *(one.ctypes.data for one in given),
            uniforms.ctypes.data, ids.ctypes.data, len(rows), self.layout.tiles, self.tile, threads,
        )  # fmt: skip
        return ids


def tables(asked: Sequence[NativeClasses]) -> np.ndarray | None:
    """Of every tile, what is asked: [tiles, asked, fields]; None: nothing."""
    return np.stack([one.table for one in asked], axis=1) if asked else None

"""An automaton over token classes as pairs of states, and the stretch of it that one canvas covers.

Edges that share source and target differ only in class; their classes form a set, and sets repeat all over an
automaton, so masses are summed once a set and the recursions of law.py run over (source, target) pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from scumble.structure.automaton import DEAD
from scumble.structure.classes import END, Tokens
from scumble.structure.minimal import BLOCK

FINISHED = DEAD  # in a graph no pair leads to the dead state, so its number serves for "the end id has come"


@dataclass(frozen=True)
class Graph:
    """Pairs of states that some token leads between, sorted by source; and the sets of classes that do. All int32.

    source, target, label [P]; first [S + 1]: where each source's pairs begin. members [M]: classes of the sets, one set
    after another; label l has members[begin[l] : begin[l + 1]].
    """

    source: np.ndarray
    target: np.ndarray
    label: np.ndarray
    first: np.ndarray
    members: np.ndarray
    begin: np.ndarray
    distance: np.ndarray

    @property
    def states(self) -> int:
        return len(self.first) - 1

    @property
    def labels(self) -> int:
        return len(self.begin) - 1

    @staticmethod
    def of(tokens: Tokens) -> Graph:
        """All pairs of an automaton. An end id leads from every state where it may come to FINISHED."""
        states, classes = tokens.step.shape
        salt = np.random.default_rng(7).integers(1, 2**62, size=classes, dtype=np.int64)
        rows = tokens.step.astype(np.uint16 if states < 2**16 else np.uint32)  # sorted by radix
        rows[:, END] = np.where(tokens.ends, states, DEAD)  # for now, the end's state is behind all others
        parts, labels = [], dict[int, tuple[int, np.ndarray]]()
        for begin in range(0, states, BLOCK):
            kinds = np.argsort(rows[begin : begin + BLOCK], axis=1, kind="stable")
            targets = np.take_along_axis(rows[begin : begin + BLOCK], kinds, 1)
            head = targets != DEAD
            head[:, 1:] &= targets[:, 1:] != targets[:, :-1]
            source, place = np.nonzero(head)
            if not len(source):
                continue
            is_live = targets != DEAD
            kinds, heads = kinds[is_live], np.flatnonzero(head[is_live])
            code = np.add.reduceat(salt[kinds], heads)
            ends = np.append(heads[1:], len(kinds))
            names, where = np.unique(code, return_index=True)
            for name, at in zip(names.tolist(), where.tolist(), strict=True):
                labels.setdefault(name, (len(labels), kinds[heads[at] : ends[at]]))
            numbers = np.array([labels[name][0] for name in names.tolist()])
            parts.append((source + begin, targets[source, place], numbers[np.searchsorted(names, code)]))
        source, target, label = (np.concatenate(one) for one in zip(*parts, strict=True))
        members = [kinds for _, kinds in labels.values()]
        arrays = (
            source, np.where(target == states, FINISHED, target), label,
            np.searchsorted(source, np.arange(states + 1)), np.concatenate(members),
            np.cumsum([0, *(len(kinds) for kinds in members)]),
        )  # fmt: skip
        return Graph(*(array.astype(np.int32) for array in arrays), distance=tokens.distance)

    def sums(self, masses: np.ndarray) -> np.ndarray:
        """log of the summed probability of every set: [n, C] -> [n, labels]."""
        rows = masses[:, self.members]
        peak = np.maximum.reduceat(rows, self.begin[:-1], axis=1)
        base = np.where(np.isneginf(peak), 0.0, peak)
        rows = np.exp(rows - np.repeat(base, np.diff(self.begin), axis=1))
        with np.errstate(divide="ignore"):
            return base + np.log(np.add.reduceat(rows, self.begin[:-1], axis=1))

    def peaks(self, best: np.ndarray) -> np.ndarray:
        """The best of every set: [n, C] -> [n, labels]."""
        return np.maximum.reduceat(best[:, self.members], self.begin[:-1], axis=1)

    def within(self, room: int) -> np.ndarray:
        """[S] bool: whether the text is finished, or can be within `room` more tokens."""
        found = self.distance <= room
        found[FINISHED] = True
        return found

    def endings(self, ends: np.ndarray, kinds: Iterable[np.ndarray | None]) -> np.ndarray:
        """[S] bool: the states from which a text can go on to one of the states `ends` [S], or finish before.

        kinds: the classes [C] bool that may come at each position on the way, the last one first; None: all.
        """
        before, stable = None, False
        for own in kinds:
            if stable and own is before:
                continue  # the same step again changes nothing
            is_open = ends[self.target]
            if own is not None:
                is_open &= np.logical_or.reduceat(own[self.members], self.begin[:-1])[self.label]
            following = np.zeros(self.states, bool)
            following[self.source[is_open]] = True
            following[FINISHED] = True
            before, stable, ends = own, bool((following == ends).all()), following
        return ends


@dataclass(frozen=True, eq=False)
class Window:
    """What one canvas covers: `length` tokens of a text from the state `start` on, which must leave one of the states
    `ends` [S] bool behind."""

    graph: Graph
    start: int
    length: int
    ends: np.ndarray

    @cached_property
    def live(self) -> tuple[np.ndarray, np.ndarray]:
        """The states that may stand before each position and behind the last, but FINISHED: int32, one position's after
        another's; and where each position's begin [length + 2] int64."""
        graph, at = self.graph, np.zeros(self.graph.states, bool)
        at[self.start] = True
        found = [np.array([self.start], np.int32)]
        stable = False
        for _ in range(self.length):
            if not stable:
                following = np.zeros(graph.states, bool)
                following[graph.target[at[graph.source]]] = True
                following[FINISHED] = False
                stable, at = bool((following == at).all()), following
            found.append(found[-1] if stable else np.flatnonzero(at).astype(np.int32))
        begins = np.concatenate([[0], np.cumsum([len(states) for states in found])])
        return np.concatenate(found), begins

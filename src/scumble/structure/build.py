"""Trees to automata: Thompson's construction, then sets of states as states, then the smallest automaton."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from scumble.structure import tree
from scumble.structure.automaton import BYTES, DEAD, START, Automaton, Budget
from scumble.structure.minimal import empty, minimised, product, trimmed
from scumble.structure.tree import Node, StructureError


def compile_tree(node: Node, budget: Budget | None = None) -> Automaton:
    """The smallest automaton of a language. Raises StructureError where it is beyond the limits."""
    return _compiled(node, budget or Budget(), {})


def _compiled(node: Node, budget: Budget, parts: Parts) -> Automaton:
    nfa = _Nfa(budget, parts)
    try:
        nfa.final = nfa.build(node, nfa.state())
    except RecursionError:
        raise StructureError("the structure is nested too deeply; the limit is about 200 levels") from None
    return minimised(trimmed(_determinised(nfa, budget)))


Edge = tuple[int, int, int, int]  # state, low symbol, high symbol, next state


class _Part(NamedTuple):
    """An automaton that stands in a tree, by its edges. node: held, so that no other has its id."""

    node: Node
    states: int
    edges: list[Edge]
    ends: list[int]


Parts = dict[int, _Part]  # by id of the node: a tree that stands in many places is compiled once


def edges_of(machine: Automaton) -> list[Edge]:
    """Every way from state to state, neighbouring bytes joined; special tokens are symbols 256 + k."""
    rows = machine.step[:, machine.column]
    found = []
    for source, row in enumerate(rows[START:], START):
        borders = [0, *(np.flatnonzero(row[1:BYTES] != row[: BYTES - 1]) + 1).tolist(), *range(BYTES, len(row) + 1)]
        for low, beyond in itertools.pairwise(borders):
            if row[low] != DEAD:
                found.append((source, low, beyond - 1, int(row[low])))
    return found


@dataclass
class _Nfa:
    """Thompson's construction. A fragment begins in a state that exists and never leads back into it."""

    budget: Budget
    parts: Parts
    edges: list[list[tuple[int, int, int]]] = field(default_factory=list)  # low symbol, high symbol, target
    free: list[list[int]] = field(default_factory=list)  # targets without reading anything
    symbols: dict[int, int] = field(default_factory=dict)  # special token id -> symbol
    fragments: dict[tree.Chars, tuple[int, list[tuple[int, int, int, int]]]] = field(default_factory=dict)
    final: int = 0

    def state(self) -> int:
        self.edges.append([])
        self.free.append([])
        if len(self.edges) % 4096 == 0:
            self.budget.check(len(self.edges) // 8)
        return len(self.edges) - 1

    def symbol(self, id: int) -> int:
        """The symbol of a special token."""
        return self.symbols.setdefault(id, BYTES + len(self.symbols))

    def build(self, node: Node, start: int) -> int:
        """Add a language that begins in `start`; returns the state in which it ends."""
        match node:
            case tree.Text(data):
                for byte in data:
                    end = self.state()
                    self.edges[start].append((byte, byte, end))
                    start = end
                return start
            case tree.Chars():
                return self._chars(node, start)
            case tree.Seq(parts):
                for part in parts:
                    start = self.build(part, start)
                return start
            case tree.Alt(parts):
                end = self.state()
                for part in parts:
                    self.free[self.build(part, start)].append(end)
                return end
            case tree.Repeat():
                return self._repeat(node, start)
            case tree.Members():
                return self._members(node, start)
            case tree.Table():
                return self._table(node, start)
            case tree.Symbol(id):
                end, symbol = self.state(), self.symbol(id)
                self.edges[start].append((symbol, symbol, end))
                return end
            case tree.Empty():
                return self.state()
            case tree.Both() | tree.Except():
                return self._embed(self._joined(node), start)

    def _repeat(self, node: tree.Repeat, start: int) -> int:
        part, between, most = node.part, node.between, node.most
        skipped = start if node.least == 0 else None
        for number in range(node.least - 1 if most is None else node.least):
            start = self.build(part, start if number == 0 else self.build(between, start))
        if most is None:
            hub = self.state()
            self.free[start if node.least < 2 else self.build(between, start)].append(hub)
            end = self.build(part, hub)
            self.free[self.build(between, end)].append(hub)
        else:
            end = self.state()
            for number in range(node.least, most):
                if number:
                    self.free[start].append(end)
                start = self.build(part, start if number == 0 else self.build(between, start))
            self.free[start].append(end)
        if skipped is None:
            return end
        out = self.state()
        self.free[skipped].append(out)
        self.free[end].append(out)
        return out

    def _members(self, node: tree.Members, start: int) -> int:
        """States by how many members there are so far: 0, 1 … cap, where the last stands for all beyond."""
        cap = max(1, node.least) if node.most is None else node.most
        at: dict[int, int] = {0: self.state()}
        self.free[start].append(at[0])
        for item, required in node.items:
            after: dict[int, int] = {} if required else {count: self.state() for count in at}
            for count, state in at.items() if not required else ():
                self.free[state].append(after[count])
            self._member(node, item, at, after, cap)
            at = after
        ends = self._loop(node, at, cap)
        end = self.state()
        for count, state in ends:
            if count >= node.least:
                self.free[state].append(end)
        return end

    def _member(self, node: tree.Members, item: Node, at: dict[int, int], after: dict[int, int], cap: int) -> None:
        """One more member from every count in `at`. Counts that lead to the same count share one copy of the item."""
        entries: dict[int, int] = {}
        for count, state in at.items():
            if count == cap and node.most is not None:
                continue
            entry = entries.setdefault(min(count + 1, cap), self.state())
            self.free[state if count == 0 else self.build(node.separator, state)].append(entry)
        for count, entry in entries.items():
            self.free[self.build(item, entry)].append(after.setdefault(count, self.state()))

    def _loop(self, node: tree.Members, at: dict[int, int], cap: int) -> list[tuple[int, int]]:
        """Repetitions of the loop behind the items -> (count, state) at which the members may end."""
        found = list(at.items())
        if isinstance(node.loop, tree.Empty):
            return found
        if node.most is not None:
            for _ in range(cap):
                after: dict[int, int] = {}
                self._member(node, node.loop, at, after, cap)
                found += after.items()
                at = after
            return found
        after = {}
        self._member(node, node.loop, at, after, cap)
        for count, state in after.items():  # again and again, without counting
            entry = self.state()
            self.free[self.build(node.separator, state)].append(entry)
            self.free[self.build(node.loop, entry)].append(state)
            found.append((count, state))
        return found

    def _table(self, node: tree.Table, start: int) -> int:
        symbols = {BYTES + index: self.symbol(id) for index, id in enumerate(node.symbols)}
        ids: dict[int, int] = {}
        for source, low, high, target in node.edges:
            for state in (source, target):
                if state not in ids:
                    ids[state] = self.state()
            self.edges[ids[source]].append((symbols.get(low, low), symbols.get(high, high), ids[target]))
        end = self.state()
        if 0 not in ids:
            ids[0] = self.state()
        self.free[start].append(ids[0])
        for state in node.ends & ids.keys():
            self.free[ids[state]].append(end)
        return end

    def _chars(self, chars: tree.Chars, start: int) -> int:
        """The code points as a small automaton that is deterministic and shares its tails."""
        if chars not in self.fragments:
            self.fragments[chars] = _char_fragment(chars)
        count, edges = self.fragments[chars]
        end = self.state()
        ids = [start, end, *(self.state() for _ in range(count - 2))]
        for source, low, high, target in edges:
            self.edges[ids[source]].append((low, high, ids[target]))
        return end

    def _joined(self, node: tree.Both | tree.Except) -> _Part:
        if id(node) not in self.parts:
            operands = node.parts if isinstance(node, tree.Both) else (node.whole, node.without)
            machines = [_compiled(part, self.budget, self.parts) for part in operands]
            joined = machines[0]
            for machine in machines[1:]:
                joined = product(joined, machine, wanted=isinstance(node, tree.Both), budget=self.budget)
            self.parts[id(node)] = _Part(node, joined.states, edges_of(joined), np.flatnonzero(joined.ends).tolist())
        return self.parts[id(node)]

    def _embed(self, part: _Part, start: int) -> int:
        """Copy an automaton's states; its start is copied too, because it may lead back into it."""
        end = self.state()
        ids = [-1, *(self.state() for _ in range(part.states - 1))]
        self.free[start].append(ids[START])
        for source, low, high, target in part.edges:
            self.edges[ids[source]].append((low, high, ids[target]))
        for state in part.ends:
            self.free[ids[state]].append(end)
        return end


def _char_fragment(chars: tree.Chars) -> tuple[int, list[tuple[int, int, int, int]]]:
    """Number of states, and edges (source, low, high, target); 0 is the start, 1 the end."""
    end: frozenset[tree.Sequence_] = frozenset([()])
    first = frozenset(tree.byte_sequences(chars))
    numbers, todo = {first: 0, end: 1}, [first] if first else []
    edges = []
    while todo:
        state = todo.pop()
        borders = sorted({border for rest in state for border in (rest[0][0], rest[0][1] + 1)})
        for low, beyond in itertools.pairwise(borders):
            after = frozenset(rest[1:] for rest in state if rest[0][0] <= low <= rest[0][1])
            if not after:
                continue
            if after not in numbers:
                numbers[after] = len(numbers)
                todo.append(after)
            edges.append((numbers[state], low, beyond - 1, numbers[after]))
    return len(numbers), edges


def _determinised(nfa: _Nfa, budget: Budget) -> Automaton:
    """Subset construction. Edges are bit masks over symbol classes, so that a set of states is joined in few steps."""
    width = BYTES + len(nfa.symbols)
    borders = sorted(
        {0, BYTES, *range(BYTES, width + 1)} | {b for row in nfa.edges for e in row for b in (e[0], e[1] + 1)}
    )
    place = {border: number for number, border in enumerate(borders)}
    column = np.searchsorted(np.array(borders), np.arange(width), side="right").astype(np.int32) - 1
    classes = len(borders) - 1

    closures: dict[int, frozenset[int]] = {}

    def closure(state: int) -> frozenset[int]:
        """States reached without reading, of those that read something or end."""
        if state not in closures:
            seen, todo, kept = {state}, [state], []
            while todo:
                at = todo.pop()
                if nfa.edges[at] or at == nfa.final:
                    kept.append(at)
                for target in nfa.free[at]:
                    if target not in seen:
                        seen.add(target)
                        todo.append(target)
            closures[state] = frozenset(kept)
        return closures[state]

    moves: dict[int, list[tuple[int, frozenset[int]]]] = {}

    def moves_of(state: int) -> list[tuple[int, frozenset[int]]]:
        if state not in moves:
            parts: list[tuple[int, frozenset[int]]] = []
            for low, high, target in nfa.edges[state]:
                first, beyond = place[low], place[high + 1]
                parts.append((((1 << (beyond - first)) - 1) << first, closure(target)))
            moves[state] = _split(parts)
        return moves[state]

    start = closure(0)
    numbers: dict[frozenset[int], int] = {frozenset(): DEAD, start: START}
    if not start:
        return empty(column, tuple(nfa.symbols))
    order = [start]
    rows: list[np.ndarray] = [np.zeros(classes, np.int32)]
    indices: dict[int, np.ndarray] = {}
    for state in order:  # grows while it is read
        if len(order) & 127 == 0:
            budget.check(len(order))
        members = iter(state)
        parts = moves_of(next(members))
        if len(state) > 1:
            parts = _split([*parts, *(move for member in members for move in moves_of(member))])
        row = np.zeros(classes, np.int32)
        for mask, target in parts:
            number = numbers.get(target)
            if number is None:
                number = numbers[target] = len(numbers)
                order.append(target)
            if mask not in indices:
                indices[mask] = np.array([i for i in range(classes) if mask >> i & 1])
            row[indices[mask]] = number
        rows.append(row)
    ends = np.array([False, *(nfa.final in state for state in order)])
    return Automaton(np.stack(rows), column, ends, tuple(nfa.symbols))


def _split(edges: list[tuple[int, frozenset[int]]]) -> list[tuple[int, frozenset[int]]]:
    """Edges with overlapping masks -> edges with disjoint masks, whose targets are joined."""
    parts: list[tuple[int, frozenset[int]]] = []
    taken = 0
    for mask, target in edges:
        if mask & taken:
            old, parts = parts, []
            for other, there in old:
                shared = other & mask
                if shared and other != shared:
                    parts.append((other & ~mask, there))
                parts.append((shared or other, there | target if shared else there))
            mask &= ~taken
        if mask:
            parts.append((mask, target))
            taken |= mask
    return parts

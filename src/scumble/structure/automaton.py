"""Deterministic automata over bytes and special tokens: made from trees, joined, cut to what can end, minimised.

A state is a row of `step`; state 0 is dead (no ending can be reached), state 1 the start. Columns are classes of
symbols that move every state alike: bytes 0 … 255, then the special tokens that the language names.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field

import numpy as np

from scumble.structure import tree
from scumble.structure.tree import Node, StructureError

DEAD, START = 0, 1
BYTES = 256


class TooLarge(StructureError):
    """A structure is beyond the limits of size or time."""


@dataclass(frozen=True)
class Limits:
    """How much a language may cost to compile. seconds: of one compilation; states: of one automaton."""

    states: int = 60_000
    seconds: float = 10.0


@dataclass
class Budget:
    """What is left of the limits while one language is compiled."""

    limits: Limits = field(default_factory=Limits)
    started: float = field(default_factory=time.monotonic)

    def check(self, states: int = 0) -> None:
        if states > self.limits.states:
            raise TooLarge(
                f"the structure needs more than {self.limits.states} states; ask for less: smaller length and item "
                "limits, fewer optional parts, a simpler pattern"
            )
        if time.monotonic() - self.started > self.limits.seconds:
            raise TooLarge(
                f"the structure took more than {self.limits.seconds:g} s to compile; ask for less: smaller length and "
                "item limits, fewer optional parts, a simpler pattern"
            )


@dataclass(frozen=True)
class Automaton:
    """step [S, C] int32: next state by symbol class; column [256 + k] int32: each symbol's class; ends [S] bool.

    symbols: ids of the k special tokens, in the order of their columns.
    """

    step: np.ndarray
    column: np.ndarray
    ends: np.ndarray
    symbols: tuple[int, ...] = ()

    @property
    def states(self) -> int:
        return self.step.shape[0]

    @property
    def is_empty(self) -> bool:
        return not self.ends.any()

    def walk(self, data: bytes, state: int = START) -> int:
        """The state after some bytes; 0 once no ending can be reached."""
        for byte in data:
            state = int(self.step[state, self.column[byte]])
        return state

    def accepts(self, data: bytes) -> bool:
        return bool(self.ends[self.walk(data)])


def compile_tree(node: Node, budget: Budget | None = None) -> Automaton:
    """The smallest automaton of a language. Raises StructureError where it is beyond the limits."""
    budget = budget or Budget()
    nfa = _Nfa(budget)
    try:
        nfa.final = nfa.build(node, nfa.state())
    except RecursionError:
        raise StructureError("the structure is nested too deeply; the limit is about 200 levels") from None
    return minimised(trimmed(_determinised(nfa, budget)))


@dataclass
class _Nfa:
    """Thompson's construction. A fragment begins in a state that exists and never leads back into it."""

    budget: Budget
    edges: list[list[tuple[int, int, int]]] = field(default_factory=list)  # low symbol, high symbol, target
    free: list[list[int]] = field(default_factory=list)  # targets without reading anything
    symbols: dict[int, int] = field(default_factory=dict)  # special token id -> symbol
    fragments: dict[tree.Chars, tuple[int, list[tuple[int, int, int, int]]]] = field(default_factory=dict)
    parts: dict[int, tuple[Node, Automaton]] = field(default_factory=dict)
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

    def _joined(self, node: tree.Both | tree.Except) -> Automaton:
        if id(node) not in self.parts:
            operands = node.parts if isinstance(node, tree.Both) else (node.whole, node.without)
            machines = [compile_tree(part, self.budget) for part in operands]
            joined = machines[0]
            for machine in machines[1:]:
                joined = product(joined, machine, wanted=isinstance(node, tree.Both), budget=self.budget)
            self.parts[id(node)] = node, joined
        return self.parts[id(node)][1]

    def _embed(self, machine: Automaton, start: int) -> int:
        """Copy an automaton's states; its start is copied too, because it may lead back into it."""
        end = self.state()
        ids = [-1, *(self.state() for _ in range(machine.states - 1))]
        self.free[start].append(ids[START])
        rows = machine.step[:, machine.column[:BYTES]]
        for source in range(1, machine.states):
            row = rows[source]
            borders = [0, *(np.flatnonzero(row[1:] != row[:-1]) + 1).tolist(), BYTES]
            for low, beyond in itertools.pairwise(borders):
                if row[low] != DEAD:
                    self.edges[ids[source]].append((low, beyond - 1, ids[row[low]]))
            if machine.ends[source]:
                self.free[ids[source]].append(end)
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
        return _empty(column, tuple(nfa.symbols))
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


def product(one: Automaton, two: Automaton, *, wanted: bool, budget: Budget) -> Automaton:
    """Texts that `one` accepts and `two` accepts (wanted) or does not accept (not wanted)."""
    assert not one.symbols
    assert not two.symbols
    pair = np.unique(one.column.astype(np.int64) * two.step.shape[1] + two.column, return_inverse=True)
    left, right = pair[0] // two.step.shape[1], pair[0] % two.step.shape[1]
    if one.is_empty:
        return one
    numbers = {START * two.states + START: START}
    frontier = np.array(list(numbers), np.int64)
    found, steps = [np.zeros(1, np.int64), frontier], [np.zeros((1, len(left)), np.int64)]
    while frontier.size:
        a, b = one.step[frontier // two.states][:, left], two.step[frontier % two.states][:, right]
        code = a.astype(np.int64) * two.states + b
        code[(a == DEAD) | (wanted & (b == DEAD))] = 0
        steps.append(code)
        fresh = [int(c) for c in np.unique(code) if c and int(c) not in numbers]
        for c in fresh:
            numbers[c] = len(numbers) + 1
        budget.check(len(numbers))
        frontier = np.array(fresh, np.int64)
        found.append(frontier)
    codes = np.concatenate(found)
    order = np.argsort(codes[1:]) + 1
    table = np.concatenate(steps)
    numbered = order[np.clip(np.searchsorted(codes[order], table), 0, len(order) - 1)]
    step = np.where(table == 0, DEAD, numbered).astype(np.int32)
    ends = one.ends[codes // two.states] & (two.ends[codes % two.states] == wanted)
    ends[0] = False
    return minimised(trimmed(Automaton(step, pair[1].astype(np.int32), ends)))


def _empty(column: np.ndarray, symbols: tuple[int, ...]) -> Automaton:
    """The automaton of no text: a start that leads nowhere."""
    return Automaton(np.zeros((2, 1), np.int32), np.zeros_like(column), np.zeros(2, bool), symbols)


def trimmed(machine: Automaton) -> Automaton:
    """Without the states from which no ending can be reached."""
    into, first = _predecessors(machine.step)
    alive = machine.ends.copy()
    frontier = np.flatnonzero(alive)
    while frontier.size:
        reached = np.unique(_gather(into, first, frontier))
        frontier = reached[~alive[reached]]
        alive[frontier] = True
    alive[DEAD] = False
    if not alive[START]:
        return _empty(machine.column, machine.symbols)
    number = np.cumsum(alive).astype(np.int32) * alive
    keep = np.concatenate([[DEAD], np.flatnonzero(alive)])
    return Automaton(number[machine.step[keep]], machine.column, machine.ends[keep], machine.symbols)


def minimised(machine: Automaton) -> Automaton:
    """States and columns that behave alike become one.

    Moore's refinement, but each round looks only at predecessors of states whose class has changed: a class splits
    where its members' rows, read as classes, differ. Rows are compared by a 64-bit hash; one exact comparison at the
    end stands behind it.
    """
    step, column = _alike_columns(machine)
    states = step.shape[0]
    if states < 3:
        return Automaton(step, column, machine.ends, machine.symbols)
    into, first = _predecessors(step)
    rng = np.random.default_rng(20261126)
    salt = rng.integers(1, 2**63, size=step.shape[1], dtype=np.uint64) | np.uint64(1)
    label = rng.integers(1, 2**63, size=states + 2, dtype=np.uint64)  # a random number for each class
    group = machine.ends.astype(np.int64)  # the class of each state
    if not machine.ends.any() or machine.ends.all():
        group = np.zeros(states, np.int64)
    count = int(group.max()) + 1
    size = np.bincount(group, minlength=states + 2)
    signature = np.zeros(states + 2, np.uint64)  # by class: what all members' rows hash to
    dirty = np.arange(states)
    while dirty.size:
        rows = (label[group[step[dirty]]] * salt).sum(axis=1)
        order = np.lexsort((rows, group[dirty]))
        dirty, rows = dirty[order], rows[order]
        owner = group[dirty]
        head = np.ones(dirty.size, bool)
        head[1:] = (owner[1:] != owner[:-1]) | (rows[1:] != rows[:-1])
        begins = np.flatnonzero(head)
        lengths = np.diff(np.append(begins, dirty.size))
        changed = []
        touched = np.bincount(owner, minlength=1)
        kept: set[int] = set()
        for begin, length in zip(begins.tolist(), lengths.tolist(), strict=True):
            old = int(owner[begin])
            if touched[old] < size[old]:  # some members are as they were, with the old signature
                if rows[begin] == signature[old]:
                    continue
            elif old not in kept:  # every member is here: one part keeps the class
                kept.add(old)
                signature[old] = rows[begin]
                continue
            members = dirty[begin : begin + length]
            group[members] = count
            signature[count], size[count] = rows[begin], length
            changed.append(members)
            count += 1
        size = np.bincount(group, minlength=states + 2)
        dirty = np.unique(_gather(into, first, np.concatenate(changed))) if changed else np.empty(0, np.int64)
    return _quotient(Automaton(step, column, machine.ends, machine.symbols), group)


def _quotient(machine: Automaton, group: np.ndarray) -> Automaton:
    """One state a class; classes are numbered with the dead state first, then the start, then as they come."""
    heads, member = np.unique(group, return_index=True)
    position = np.argsort(np.where(member == START, 0, member + 1) - 2 * (group[member] == group[DEAD]), kind="stable")
    number = np.zeros(int(heads.max()) + 1, np.int32)
    number[heads[position]] = np.arange(len(heads))
    step = number[group[machine.step[member[position]]]]
    of_all = number[group]
    if not np.array_equal(step[of_all], of_all[machine.step]) or not np.array_equal(
        machine.ends[member[position]][of_all], machine.ends
    ):
        return machine  # two hashes fell together: correct all the same, only larger
    step, column = _alike_columns(Automaton(step, machine.column, machine.ends[member[position]], machine.symbols))
    return Automaton(step, column, machine.ends[member[position]], machine.symbols)


def _alike_columns(machine: Automaton) -> tuple[np.ndarray, np.ndarray]:
    columns, back = np.unique(machine.step, axis=1, return_inverse=True)
    return np.ascontiguousarray(columns), back.reshape(-1).astype(np.int32)[machine.column]


def _predecessors(step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """States that lead into each state but the dead one: one list, and where each state's part begins [S + 1]."""
    states = step.shape[0]
    pairs = step.astype(np.int64) * states + np.arange(states)[:, None]
    pairs = np.unique(pairs[step != DEAD])
    return pairs % states, np.searchsorted(pairs // states, np.arange(states + 1))


def _gather(values: np.ndarray, first: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The parts of `values` that belong to some rows, one after another."""
    begin, length = first[rows], first[rows + 1] - first[rows]
    if not length.sum():
        return np.empty(0, values.dtype)
    offset = np.repeat(begin - np.concatenate([[0], np.cumsum(length)[:-1]]), length)
    return values[offset + np.arange(int(length.sum()))]

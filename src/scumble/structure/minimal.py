"""Automata cut to what can end, made as small as they can be, and joined: both of two languages, or one without the
other."""

from __future__ import annotations

import numpy as np

from scumble.structure.automaton import DEAD, START, Automaton, Budget

BLOCK = 1024  # states whose rows are sorted at a time


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


def empty(column: np.ndarray, symbols: tuple[int, ...]) -> Automaton:
    """The automaton of no text: a start that leads nowhere."""
    return Automaton(np.zeros((2, 1), np.int32), np.zeros_like(column), np.zeros(2, bool), symbols)


def trimmed(machine: Automaton) -> Automaton:
    """Without the states from which no ending can be reached."""
    into, first = predecessors(machine.step)
    alive = machine.ends.copy()
    frontier = np.flatnonzero(alive)
    while frontier.size:
        before = alive.copy()
        alive[_gather(into, first, frontier)] = True
        frontier = np.flatnonzero(alive & ~before)
    alive[DEAD] = False
    if not alive[START]:
        return empty(machine.column, machine.symbols)
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
    into, first = predecessors(step)
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
        dirty = np.empty(0, np.int64)
        if changed:
            is_dirty = np.zeros(states, bool)
            is_dirty[_gather(into, first, np.concatenate(changed))] = True
            dirty = np.flatnonzero(is_dirty)
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


def predecessors(step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """States that lead into each state but the dead one: one list, and where each state's part begins [S + 1]."""
    source, target = pairs(step)
    order = np.argsort(target, kind="stable")
    return source[order], np.searchsorted(target[order], np.arange(step.shape[0] + 1))


def pairs(step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(source, target) of every pair of states that some symbol leads between, by source, the dead state left out."""
    small = np.uint16 if step.shape[0] < 2**16 else np.uint32  # sorted by radix
    found = []
    for begin in range(0, step.shape[0], BLOCK):
        rows = np.sort(step[begin : begin + BLOCK].astype(small), axis=1, kind="stable")
        fresh = rows != DEAD
        fresh[:, 1:] &= rows[:, 1:] != rows[:, :-1]
        source, column = np.nonzero(fresh)
        found.append((source + begin, rows[source, column].astype(np.int64)))
    source, target = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return source, target


def _gather(values: np.ndarray, first: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The parts of `values` that belong to some rows, one after another."""
    begin, length = first[rows], first[rows + 1] - first[rows]
    if not length.sum():
        return np.empty(0, values.dtype)
    offset = np.repeat(begin - np.concatenate([[0], np.cumsum(length)[:-1]]), length)
    return values[offset + np.arange(int(length.sum()))]

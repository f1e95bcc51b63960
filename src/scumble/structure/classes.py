"""Token classes: tokens that move every state of an automaton alike are one class.

A token is a function from states to states. Functions of prefixes are composed byte by byte along the trie, and equal
ones are found again by hash and comparison, so all of a vocabulary costs little more than its few distinct functions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scumble.structure.automaton import DEAD, START, Automaton, Budget
from scumble.structure.minimal import predecessors
from scumble.structure.tree import StructureError
from scumble.structure.vocabulary import Vocabulary

NEVER = 2**30  # tokens to an end that does not exist


@dataclass(frozen=True)
class Tokens:
    """An automaton over token ids.

    of_token [V] int16 or int32: class of every id. 0: no text of the language has this token anywhere; 1: an end id.
    step [S, C] int32: the state after a token of each class; 0 dead. Column 1 is unused: an end id leads nowhere.
    ends [S] bool: an end id may come here. distance [S] int64: fewest tokens to the end, the end id among them.
    """

    of_token: np.ndarray
    step: np.ndarray
    ends: np.ndarray
    distance: np.ndarray

    @property
    def states(self) -> int:
        return self.step.shape[0]

    @property
    def classes(self) -> int:
        return self.step.shape[1]

    @property
    def fewest(self) -> int:
        """The least number of tokens of an answer, the end id among them."""
        return int(self.distance[START])

    def after(self, state: int, id: int) -> int:
        """The state after a token that is no end id."""
        return int(self.step[state, self.of_token[id]]) if 0 <= id < len(self.of_token) else DEAD


END = 1


def classify(machine: Automaton, vocabulary: Vocabulary, end_ids: tuple[int, ...], budget: Budget) -> Tokens:
    """Read every token in every state. Raises StructureError where the vocabulary cannot write the language."""
    functions = _Functions(machine.step)
    of_node = np.array([functions.identity], np.int32)
    of_token = np.zeros(vocabulary.size, np.int32)
    for level in vocabulary.levels:
        budget.check()
        of_node = functions.after(of_node[level.parent], machine.column[level.byte])
        of_token[level.tokens] = of_node[level.at]
    for index, id in enumerate(machine.symbols):
        if id < vocabulary.size:
            of_token[id] = functions.after(np.array([functions.identity]), machine.column[[256 + index]])[0]
    used = np.flatnonzero(np.bincount(of_token, minlength=1))
    used = used[used > 0]
    step = np.zeros((machine.states, len(used) + 2), np.int32)
    step[:, 2:] = functions.table(used).T
    of_function = np.zeros(functions.count, np.int32)
    of_function[used] = np.arange(2, len(used) + 2)
    classes = of_function[of_token]
    classes[[id for id in end_ids if 0 <= id < vocabulary.size]] = END
    tokens = Tokens(classes, step, machine.ends, np.empty(0))
    distance = _distance(step, machine.ends)
    if machine.is_empty or distance[START] >= NEVER:
        raise StructureError("the tokenizer has no tokens that could write any text of this structure")
    dead_ends = (distance >= NEVER)[step] & (step != DEAD)
    if dead_ends.any():
        step = np.where(dead_ends, DEAD, step)
    small = np.int16 if step.shape[1] < 2**15 else np.int32
    return Tokens(classes.astype(small), step, tokens.ends, distance)


class _Functions:
    """Distinct functions from states to states, numbered as they are found. 0 leads everywhere to the dead state."""

    def __init__(self, step: np.ndarray) -> None:
        states, columns = step.shape
        small = np.uint16 if states < 2**16 else np.int32
        self._after = np.ascontiguousarray(step.T.astype(small))  # by symbol, then by state
        self._rows = [np.zeros(states, small), np.arange(states, dtype=small)]
        self.count = 2
        self.identity = 1
        self._numbers: dict[bytes, int] = {self._rows[0].tobytes(): 0, self._rows[1].tobytes(): 1}
        self._next = np.full((64, columns), -1, np.int32)  # (function, column) -> function; -1: not yet known
        self._next[0] = 0

    def after(self, functions: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """For each pair, the function that reads what `functions` reads and then one symbol."""
        width = len(self._after)
        codes = functions.astype(np.int64) * width + columns
        missing = codes[self._next.reshape(-1)[codes] < 0]
        if missing.size:
            for code in np.unique(missing).tolist():
                self._compose(code // width, code % width)
        return self._next.reshape(-1)[codes]

    def _compose(self, function: int, column: int) -> None:
        row = self._after[column].take(self._rows[function])
        key = row.tobytes()
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = self.count
            self._rows.append(row)
            self.count += 1
            if self.count > len(self._next):
                self._next = np.concatenate([self._next, np.full_like(self._next, -1)])
        self._next[function, column] = number

    def table(self, numbers: np.ndarray) -> np.ndarray:
        """Some functions as rows [n, S]."""
        rows = [self._rows[number] for number in numbers.tolist()]
        return np.array(rows, self._rows[0].dtype).reshape(len(rows), len(self._rows[0]))


def _distance(step: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Fewest tokens to the end from each state: breadth first, from the ends backwards."""
    states = step.shape[0]
    source, first = predecessors(step)
    distance = np.where(ends, 1, NEVER).astype(np.int64)
    distance[DEAD] = NEVER
    frontier = np.flatnonzero(distance == 1)
    length = 1
    while frontier.size:
        length += 1
        lengths = first[frontier + 1] - first[frontier]
        offset = np.repeat(first[frontier] - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
        reached = np.zeros(states, bool)
        reached[source[offset + np.arange(int(lengths.sum()))]] = True
        frontier = np.flatnonzero(reached & (distance == NEVER))
        distance[frontier] = length
    return distance

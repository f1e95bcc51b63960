"""Deterministic automata over bytes and special tokens, and how much one may cost. Made in build.py.

A state is a row of `step`; state 0 is dead (no ending can be reached), state 1 the start. Columns are classes of
symbols that move every state alike: bytes 0 … 255, then the special tokens that the language names.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from scumble.structure.tree import StructureError

DEAD, START = 0, 1
BYTES = 256


class TooLarge(StructureError):
    """A structure is beyond the limits of size or time."""


@dataclass(frozen=True)
class Limits:
    """How much a language may cost to compile. seconds: of one compilation, processor time, so that a busy machine
    refuses nothing that an idle one accepts; states: of one automaton."""

    states: int = 60_000
    seconds: float = 10.0


@dataclass
class Budget:
    """What is left of the limits while one language is compiled."""

    limits: Limits = field(default_factory=Limits)
    started: float = field(default_factory=time.thread_time)

    def check(self, states: int = 0) -> None:
        if states > self.limits.states:
            raise TooLarge(
                f"the structure needs more than {self.limits.states} states; ask for less: smaller length and item "
                "limits, fewer optional parts, a simpler pattern"
            )
        if time.thread_time() - self.started > self.limits.seconds:
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

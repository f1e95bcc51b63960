"""What a task is: cases, a way to put each to a model, and a way to score what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from scumble.events import Generation
    from scumble.llm import LLM
    from scumble.settings import GenerationConfig


@dataclass(frozen=True)
class Case:
    """One question. before, after: the text around the hole (nothing behind a continuation). wanted: what was there.

    group: cases that are alike (lines of one problem, functions of one package). tests: a program that goes on behind
    the answer and fails if it is wrong. given: what stands in the hole now, to be put right.
    """

    name: str
    group: str
    before: str
    after: str = ""
    wanted: str = ""
    tests: str = ""
    given: str = ""


@dataclass(frozen=True)
class Metric:
    """kind "rate": each case scores 0 or 1; "mean": any number, below 0 too. What cannot be asked scores 0."""

    name: str
    label: str
    kind: Literal["rate", "mean"] = "rate"


Scores = Mapping[str, float]  # by metric; a metric that says nothing about a case is left out


class Task(Protocol):
    """A generation task. The first metric is the one that decides."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def metrics(self) -> tuple[Metric, ...]: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def cases(self) -> Sequence[Case]: ...

    def ask(self, llm: LLM, case: Case, config: GenerationConfig) -> Generation: ...

    def score(self, case: Case, text: str, ended: bool) -> Scores:
        """text: the answer. ended: it came to an end by itself."""
        ...


class Skipped(Exception):
    """A task cannot be done here; the message says why, and what to do about it."""

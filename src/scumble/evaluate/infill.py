"""Infilling: one line is missing, or several that follow one another; the text around them is there.

The hole begins behind the first line's indentation, where a cursor stands, and ends before the newline. The answer
counts as it comes: it is not cut at its first newline.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scumble.evaluate.functions import Function, body_lines
from scumble.evaluate.sandbox import run_program
from scumble.evaluate.scoring import edit_similarity, exact_match, parses
from scumble.evaluate.tasks import Case, Metric, Scores

if TYPE_CHECKING:
    from scumble.events import Generation
    from scumble.llm import LLM
    from scumble.settings import GenerationConfig

LINE_TOKENS = 64  # room for an answer; a line that needs more is lost to either decoder
LINES_TOKENS = 128
MOST_LINES = 6  # of a longer hole


@dataclass(frozen=True)
class HeldOutInfill:
    """A line of a function that the model has not seen: is it the same, how near is it?"""

    cases: Sequence[Case]
    name: str = "infill"
    title: str = "single-line infilling, held-out functions"
    metrics: tuple[Metric, ...] = (Metric("exact", "exact match"), Metric("edit", "edit similarity", "mean"))
    max_new_tokens: int = LINE_TOKENS

    def ask(self, llm: LLM, case: Case, config: GenerationConfig) -> Generation:
        return llm.infill(case.before, case.after, config)

    def score(self, case: Case, text: str, ended: bool) -> Scores:
        return {"exact": exact_match(text, case.wanted), "edit": edit_similarity(text, case.wanted)}


@dataclass(frozen=True)
class HeldOutLines:
    """Some lines of a function that the model has not seen: how near is it, and is the whole Python?"""

    cases: Sequence[Case]
    name: str = "infill-lines"
    title: str = "infilling of several lines, held-out functions"
    metrics: tuple[Metric, ...] = (
        Metric("edit", "edit similarity", "mean"),
        Metric("exact", "exact match"),
        Metric("parses", "parses in its place"),
    )
    max_new_tokens: int = LINES_TOKENS

    def ask(self, llm: LLM, case: Case, config: GenerationConfig) -> Generation:
        return llm.infill(case.before, case.after, config)

    def score(self, case: Case, text: str, ended: bool) -> Scores:
        scores = {"exact": exact_match(text, case.wanted), "edit": edit_similarity(text, case.wanted)}
        return {**scores, "parses": parses(case.before + text + case.after)}


@dataclass(frozen=True)
class HumanEvalInfill:
    """A line of a HumanEval solution: do the problem's tests pass with what was filled in?"""

    cases: Sequence[Case]
    name: str = "infill-humaneval"
    title: str = "single-line infilling, HumanEval"
    metrics: tuple[Metric, ...] = (Metric("passed", "tests pass"), Metric("exact", "exact match"))
    max_new_tokens: int = LINE_TOKENS

    def ask(self, llm: LLM, case: Case, config: GenerationConfig) -> Generation:
        return llm.infill(case.before, case.after, config)

    def score(self, case: Case, text: str, ended: bool) -> Scores:
        verdict = run_program(case.before + text + case.after + case.tests)
        return {"passed": verdict.result == "passed", "exact": exact_match(text, case.wanted)}


def held_out_cases(functions: Sequence[Function], seed: int) -> list[Case]:
    """One line of each function's body, chosen by the seed and the function's place in the list."""
    cases = [held_out_case(function, seed, place) for place, function in enumerate(functions)]
    return [case for case in cases if case is not None]


def held_out_case(function: Function, seed: int, place: int) -> Case | None:
    """One line of a function's body; None: it has none."""
    numbers = body_lines(function.text)
    if not numbers:
        return None
    number = random.Random(f"{seed}:{place}").choice(numbers)
    return _hole(function, number, number)


def held_out_lines(functions: Sequence[Function], seed: int) -> list[Case]:
    """Two to MOST_LINES lines of each function's body, chosen alike; none of a function that has only one."""
    cases = []
    for place, function in enumerate(functions):
        numbers = body_lines(function.text)
        if len(numbers) > 1:
            rng = random.Random(f"{seed}:{place}:lines")
            count = rng.randint(2, min(MOST_LINES, len(numbers)))
            first = rng.randint(0, len(numbers) - count)
            cases.append(_hole(function, numbers[first], numbers[first + count - 1]))
    return cases


def _hole(function: Function, first: int, last: int) -> Case:
    """A function without its lines number `first` to `last`, neither of them blank."""
    lines = function.text.rstrip("\n").split("\n")
    line = lines[first]
    indent = line[: len(line) - len(line.lstrip())]
    before = "".join(f"{one}\n" for one in lines[:first]) + indent
    after = "".join(f"\n{one}" for one in lines[last + 1 :]) + "\n"
    wanted = "\n".join(lines[first : last + 1]).strip()
    return Case(f"{function.name}:{first}", function.package, before, after, wanted)

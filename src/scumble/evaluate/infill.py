"""Single-line infilling: one line is missing, the text around it is there.

The hole begins behind the line's indentation, where a cursor stands, and ends before the newline. The answer counts as
it comes: it is not cut at its first newline.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scumble.evaluate.functions import Function, body_lines
from scumble.evaluate.sandbox import run_program
from scumble.evaluate.scoring import edit_similarity, exact_match
from scumble.evaluate.tasks import Case, Metric, Scores

if TYPE_CHECKING:
    from scumble.generation import Generation, GenerationConfig
    from scumble.llm import LLM

LINE_TOKENS = 64  # room for an answer; a line that needs more is lost to either decoder


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
    lines = function.text.rstrip("\n").split("\n")
    line = lines[number]
    before = "".join(f"{one}\n" for one in lines[:number]) + line[: len(line) - len(line.lstrip())]
    after = "".join(f"\n{one}" for one in lines[number + 1 :]) + "\n"
    return Case(f"{function.name}:{number}", function.package, before, after, line.strip())

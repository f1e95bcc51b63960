"""Write a function's body behind its signature and docstring, or the rest of it behind its first lines."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scumble.evaluate.functions import Function, body_lines, docstring_end
from scumble.evaluate.sandbox import run_program
from scumble.evaluate.scoring import edit_similarity, parses
from scumble.evaluate.tasks import Case, Metric, Scores

if TYPE_CHECKING:
    from scumble.events import Generation
    from scumble.llm import LLM
    from scumble.settings import GenerationConfig

BODY_TOKENS = 256
PARSES = Metric("parses", "parses (of the ended)")
ENDED = Metric("ended", "ended by itself")


@dataclass(frozen=True)
class HeldOutFunctions:
    """A function that the model has not seen: is what it writes Python, and how near is it to what was there?

    Both, because a body of one word parses easily.
    """

    cases: Sequence[Case]
    name: str = "function"
    title: str = "docstring to function, held-out functions"
    metrics: tuple[Metric, ...] = (PARSES, ENDED, Metric("edit", "edit similarity", "mean"))
    max_new_tokens: int = BODY_TOKENS

    def ask(self, llm: LLM, case: Case, config: GenerationConfig) -> Generation:
        return llm.generate(case.before, config)

    def score(self, case: Case, text: str, ended: bool) -> Scores:
        return {**_form(case, text, ended), "edit": edit_similarity(text, case.wanted)}


@dataclass(frozen=True)
class HumanEvalFunctions:
    """A HumanEval problem: does the first answer pass the tests (pass@1), and is it Python?"""

    cases: Sequence[Case]
    name: str = "function-humaneval"
    title: str = "docstring to function, HumanEval"
    metrics: tuple[Metric, ...] = (Metric("passed", "pass@1"), PARSES, ENDED)
    max_new_tokens: int = BODY_TOKENS

    def ask(self, llm: LLM, case: Case, config: GenerationConfig) -> Generation:
        return llm.generate(case.before, config)

    def score(self, case: Case, text: str, ended: bool) -> Scores:
        verdict = run_program(case.before + body_of(text) + case.tests)
        return {"passed": verdict.result == "passed", **_form(case, text, ended)}


def _form(case: Case, text: str, ended: bool) -> Scores:
    return {"ended": ended, "parses": parses(case.before + text)} if ended else {"ended": False}


def body_of(text: str) -> str:
    """The answer up to the first line, after the first, that is neither indented nor blank: the function ends there."""
    lines = text.split("\n")
    for number, line in enumerate(lines[1:], 1):
        if line.strip() and not line[0].isspace():
            return "\n".join(lines[:number])
    return text


def held_out_rests(functions: Sequence[Function], seed: int) -> list[Case]:
    """Each function cut at the end of a line of its body that is not the last, chosen by the seed and its place."""
    cases = []
    for place, function in enumerate(functions):
        numbers = body_lines(function.text)[:-1]
        if numbers:
            lines = function.text.split("\n")
            number = random.Random(f"{seed}:{place}:rest").choice(numbers)
            before = "\n".join(lines[: number + 1])
            cases.append(Case(f"{function.name}:{number}", function.package, before, "", function.text[len(before) :]))
    return cases


def held_out_bodies(functions: Sequence[Function]) -> list[Case]:
    """One case for each function with a docstring."""
    ends = [(function, docstring_end(function.text)) for function in functions]
    return [
        Case(function.name, function.package, function.text[:end], "", function.text[end:])
        for function, end in ends
        if end is not None
    ]

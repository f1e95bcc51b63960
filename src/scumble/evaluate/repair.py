"""Single-line repair: one line is damaged, the text around it is right.

The lines are those of single-line infilling, broken as train/damage.py breaks them for training, with other seeds on
functions that the model has not seen. What the model is shown is never right as it stands.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from scumble.evaluate.functions import Function
from scumble.evaluate.infill import LINE_TOKENS, held_out_case
from scumble.evaluate.scoring import error_reduction, exact_match
from scumble.evaluate.tasks import Case, Metric, Scores
from scumble.train.damage import damage

if TYPE_CHECKING:
    from scumble.events import Generation
    from scumble.llm import LLM
    from scumble.settings import GenerationConfig


@dataclass(frozen=True)
class HeldOutRepair:
    """A damaged line of a function that the model has not seen: is it right again, or nearer to it?"""

    cases: Sequence[Case]
    name: str = "repair"
    title: str = "single-line repair, held-out functions"
    metrics: tuple[Metric, ...] = (
        Metric("exact", "exact match"),
        Metric("error_reduction", "error reduction", "mean"),
        Metric("better", "nearer than the damaged"),
    )
    max_new_tokens: int = LINE_TOKENS

    def ask(self, llm: LLM, case: Case, config: GenerationConfig) -> Generation:
        return llm.repair(case.before, case.given, case.after, config)

    def score(self, case: Case, text: str, ended: bool) -> Scores:
        reduction = error_reduction(text, case.given, case.wanted)
        return {"exact": exact_match(text, case.wanted), "error_reduction": reduction, "better": reduction > 0}


def repair_cases(functions: Sequence[Function], seed: int) -> list[Case]:
    """One damaged line of each function's body. Lines that the damage leaves as they were, or empty, are left out."""
    cases = []
    for place, function in enumerate(functions):
        case = held_out_case(function, seed, place)
        if case is None:
            continue
        given = damage(case.wanted, random.Random(f"damage:{seed}:{place}"))
        if given.strip() and not exact_match(given, case.wanted):
            cases.append(replace(case, given=given))
    return cases

"""From a task's name to the task with its cases."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from scumble.evaluate.functions import Function, read_functions
from scumble.evaluate.human_eval import body_cases, find_problems, line_cases
from scumble.evaluate.infill import HeldOutInfill, HeldOutLines, HumanEvalInfill, held_out_cases, held_out_lines
from scumble.evaluate.plan import TASKS, Plan
from scumble.evaluate.repair import HeldOutRepair, repair_cases
from scumble.evaluate.tasks import Skipped, Task
from scumble.evaluate.write import HeldOutFunctions, HumanEvalFunctions, held_out_bodies, held_out_rests
from scumble.text.infill import can_infill, can_repair

if TYPE_CHECKING:
    from scumble.llm import LLM

T = TypeVar("T")


def make_task(name: str, plan: Plan, llm: LLM) -> Task:
    """A generation task of the plan. Raises Skipped with the reason, or DataError."""
    if name.startswith("infill") and not can_infill(llm.tokenizer):
        raise Skipped("the model was not trained to fill in the middle: its tokenizer has no <|fim_prefix|> …")
    if name == "repair" and not can_repair(llm.tokenizer):
        raise Skipped("the model was not trained to repair: its tokenizer has no <|repair|> or no <|fim_prefix|> …")
    match name:
        case "infill":
            return HeldOutInfill(some(held_out_cases(read_functions(plan.data), plan.seed), plan))
        case "infill-lines":
            cases = held_out_lines(read_functions(plan.data), plan.seed)
            if not cases:
                raise Skipped("no function in the data has two lines of body")
            return HeldOutLines(some(cases, plan))
        case "infill-humaneval":
            return HumanEvalInfill(some(line_cases(find_problems(plan.human_eval)), plan))
        case "continue":
            cases = held_out_rests(read_functions(plan.data), plan.seed)
            if not cases:
                raise Skipped("no function in the data has two lines of body")
            return HeldOutFunctions(some(cases, plan), name, TASKS[name])
        case "function":
            cases = held_out_bodies(read_functions(plan.data))
            if not cases:
                raise Skipped("no function in the data has a docstring and a body behind it")
            return HeldOutFunctions(some(cases, plan))
        case "function-humaneval":
            return HumanEvalFunctions(some(body_cases(find_problems(plan.human_eval)), plan))
        case "repair":
            cases = repair_cases(read_functions(plan.data), plan.seed)
            if not cases:
                raise Skipped("no function in the data has a line that can be damaged")
            return HeldOutRepair(some(cases, plan))
    raise AssertionError(f"{name} is no generation task")


def some_functions(plan: Plan) -> list[Function]:
    return some(read_functions(plan.data), plan)


def some(cases: Sequence[T], plan: Plan) -> list[T]:
    """All cases, or `limit` of them drawn by the seed, in their order."""
    if not plan.limit or plan.limit >= len(cases):
        return list(cases)
    places = random.Random(plan.seed).sample(range(len(cases)), plan.limit)
    return [cases[place] for place in sorted(places)]

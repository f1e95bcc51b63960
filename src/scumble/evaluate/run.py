"""Do what a plan says, task by task -> a report of JSON values."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scumble.bench.machine import describe
from scumble.errors import TokenizerError
from scumble.evaluate.catalogue import make_task, some_functions
from scumble.evaluate.loss import TITLE, held_out_loss
from scumble.evaluate.plan import TASKS, Plan
from scumble.evaluate.records import Record, collect
from scumble.evaluate.sandbox import run_program
from scumble.evaluate.summary import difference, summarize
from scumble.evaluate.tasks import Skipped, Task
from scumble.evaluate.variants import DECODERS, Variant, decoder_variants
from scumble.model import weight_shapes

if TYPE_CHECKING:
    from scumble.llm import LLM

FORMAT = 1


@dataclass(frozen=True)
class Watch:
    """Whom to tell. progress(task, cases done, cases); answered(task, record) for each scored answer."""

    progress: Callable[[str, int, int], None] = lambda task, done, count: None
    answered: Callable[[str, Record], None] = lambda task, record: None


NOBODY = Watch()


def evaluate(llm: LLM, plan: Plan, watch: Watch = NOBODY) -> dict[str, Any]:
    """Measure a model. Raises InvalidRequest and DataError; a task that cannot be done is in the report as skipped."""
    if llm.tokenizer is None:
        raise TokenizerError(f"{llm.folder}: has no tokenizer; the tasks are text and need one")
    variants = decoder_variants(plan.decoders, plan.overrides)
    if plan.data is not None:
        some_functions(plan)  # says at once, not after an hour, what is wrong with the file
    return {**heading(llm, plan), "tasks": [_task(llm, name, plan, variants, watch) for name in plan.chosen]}


def heading(llm: LLM, plan: Plan) -> dict[str, Any]:
    """What was measured, on what, when. Names no folder but the model's own."""
    return {
        "format": FORMAT,
        "model": llm.folder.name if llm.folder is not None else None,
        "parameters": sum(math.prod(shape) for shape in weight_shapes(llm.model.config).values()),
        "dtype": llm.model.number_format,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": describe(llm.model.device),
        "seed": plan.seed,
        "limit": plan.limit,
        "data": "shipped" if plan.data is None else plan.data.name,
    }


def _task(llm: LLM, name: str, plan: Plan, variants: Sequence[Variant], watch: Watch) -> dict[str, Any]:
    try:
        if name == "loss":
            functions = some_functions(plan)
            figures = held_out_loss(
                llm, functions, plan.seed, lambda done: watch.progress(name, done + 1, len(functions))
            )
            return {"name": name, "title": TITLE, "status": "done", "cases": len(functions), "loss": figures}
        return measure(llm, make_task(name, plan, llm), variants, plan.seed, watch)[0]
    except Skipped as reason:
        return {"name": name, "title": TASKS[name], "status": "skipped", "reason": str(reason)}


def measure(
    llm: LLM, task: Task, variants: Sequence[Variant], seed: int, watch: Watch
) -> tuple[dict[str, Any], list[Record]]:
    """One generation task with all variants -> its part of the report, and the answers."""

    def said(record: Record, place: int) -> None:
        watch.answered(task.name, record)
        watch.progress(task.name, place + 1, len(task.cases))

    records = collect(llm, task, task.cases, variants, seed, said)
    report: dict[str, Any] = {
        "name": task.name,
        "title": task.title,
        "status": "done",
        "cases": len(task.cases),
        "max_new_tokens": task.max_new_tokens,
        "metrics": [vars(metric) for metric in task.metrics],
        "variants": {
            variant.name: {
                "settings": dict(variant.settings),
                **summarize([record for record in records if record.variant == variant.name], task.metrics),
            }
            for variant in variants
        },
    }
    if {variant.name for variant in variants} == set(DECODERS):
        report["difference"] = {
            metric.name: difference(records, metric, "diffusion", "autoregressive") for metric in task.metrics
        }
    if any(case.tests for case in task.cases):
        report["sandbox"] = list(run_program("pass").guards)
    return report, records

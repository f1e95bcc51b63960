"""What is kept of one answer, and how answers are collected: every case with every variant in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scumble.errors import PromptTooLong
from scumble.evaluate.tasks import Case, Scores, Task
from scumble.evaluate.variants import Variant

if TYPE_CHECKING:
    from scumble.llm import LLM


@dataclass(frozen=True)
class Record:
    """One case, answered by one variant. tokens: of the answer, its end-of-sequence id included, nothing behind it.

    passes: denoising passes, or forward passes of the autoregressive decoder; evaluations: of canvases, each candidate
    for itself; reads: of finished texts by the causal model, to choose or correct one. What diffusion encodes (the
    prompt, what is committed) is neither, but takes its part of `seconds`. too_long: the case does not fit the context;
    it scores 0.
    """

    case: Case
    variant: str
    text: str
    tokens: int
    passes: int
    evaluations: int
    reads: int
    seconds: float
    first_text_seconds: float
    ended: bool
    scores: Scores
    too_long: bool = False

    @property
    def forwards(self) -> int:
        """Runs of the model that wait for one another."""
        return self.passes + self.reads


def collect(
    llm: LLM,
    task: Task,
    cases: Sequence[Case],
    variants: Sequence[Variant],
    seed: int,
    said: Callable[[Record, int], None] = lambda record, place: None,
) -> list[Record]:
    """Answer and score the cases. Variants take turns at each case, and take turns to be first, so that a machine that
    is slow for a while slows all of them. The first case is answered once more than it counts, to warm up."""
    records = []
    for variant in variants if cases else ():
        answer(llm, task, cases[0], variant, seed)
    for place, case in enumerate(cases):
        first = place % len(variants)
        for variant in (*variants[first:], *variants[:first]):
            record = answer(llm, task, case, variant, seed + place)
            records.append(record)
            said(record, place)
    return records


def answer(llm: LLM, task: Task, case: Case, variant: Variant, seed: int) -> Record:
    try:
        generation = task.ask(llm, case, variant.config(task.max_new_tokens, seed))
    except PromptTooLong:
        none = {metric.name: 0.0 for metric in task.metrics}
        return Record(case, variant.name, "", 0, 0, 0, 0, 0.0, 0.0, False, none, too_long=True)
    ended = generation.finish_reason == "stop"
    scores = {name: float(value) for name, value in task.score(case, generation.text, ended).items()}
    return Record(
        case, variant.name, generation.text, len(generation.token_ids), sum(generation.passes),
        generation.evaluations, generation.reads, generation.seconds, generation.first_text_seconds, ended, scores,
    )  # fmt: skip

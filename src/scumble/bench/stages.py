"""Where the time of a pass goes, measured from outside: parts of the model and of the engine are wrapped with timers.

Every wrapped call belongs to a stage, and its own time is what is left after the wrapped calls inside it. The time of a
pass that no wrapped call claims is overhead: the loop, events, glue. Instrumentation costs time itself, so runs with
and without it take turns, and the report says how much slower the instrumented ones were.

On a GPU a stage's time is the device's, between two events, so nothing waits in the middle of a pass; it contains what
the device waits for the host, which launches operation by operation here. Plain runs replay captured passes there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from scumble import diffusion
from scumble.bench.events import Watched, watch
from scumble.bench.timing import Marks, figure, marks
from scumble.engine.replay import eager
from scumble.events import Draft
from scumble.llm import LLM
from scumble.model import Transformer
from scumble.settings import GenerationConfig

STAGES = ("conditioning", "attention", "dense", "experts", "norms", "vocabulary", "sampler", "overhead")

MEANING = {
    "conditioning": "embedding, and the gated MLP that mixes in the soft embedding",
    "attention": "projections, their norms, rotary positions, scores, cache",
    "dense": "the dense gated MLP",
    "experts": "router and experts",
    "norms": "what is left of the layers: norms, residuals, layer scalars",
    "vocabulary": "head, soft-cap, entropy, argmax, sample, soft embedding",
    "sampler": "noise, accept, renoise, stopping rule",
    "overhead": "what no stage claims: the loop, events, glue",
}

LAYER_PARTS = {"self_attn": "attention", "mlp": "dense", "router": "experts", "experts": "experts"}
MODEL_PARTS = {"condition": "conditioning", "ropes": "norms", "body": "norms", "vocab_head": "vocabulary"}


Span = tuple[Any, Any]  # two moments


@dataclass
class Ledger:
    """Own time of every stage since the last `take`. One thread."""

    marks: Marks
    calls: dict[str, int] = field(default_factory=dict)
    _inner: list[list[Span]] = field(default_factory=list)  # one entry an open call: the wrapped calls inside it
    _closed: list[tuple[str, Span, list[Span]]] = field(default_factory=list)

    def wrap(self, call: Callable[..., Any], stage: str) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed_call(*args: Any, **kwargs: Any) -> Any:
            self._inner.append([])
            started = self.marks.now()
            try:
                return call(*args, **kwargs)
            finally:
                span = started, self.marks.now()
                self._closed.append((stage, span, self._inner.pop()))
                if self._inner:
                    self._inner[-1].append(span)
                self.calls[stage] = self.calls.get(stage, 0) + 1

        return timed_call

    def take(self) -> dict[str, float]:
        closed, self._closed = self._closed, []
        seconds: dict[str, float] = {}
        for stage, span, inner in closed:
            own = self.marks.between(*span) - sum(self.marks.between(*one) for one in inner)
            seconds[stage] = seconds.get(stage, 0.0) + own
        return seconds


def parts(model: Transformer) -> list[tuple[Any, str, str]]:
    """(owner, attribute, stage) of everything to wrap: modules by their `forward`, functions where the loop finds them,
    rules by their class."""
    found: list[tuple[Any, str, str]] = [(model, name, stage) for name, stage in MODEL_PARTS.items()]
    for layer in model.layers:
        found += [(getattr(layer, name, None), "forward", stage) for name, stage in LAYER_PARTS.items()]
    denoise = import_module("scumble.engine.denoise")
    found += [(denoise, name, "sampler") for name in ("committed_ids", "count_unchanged", "renoise")]
    found += [(diffusion.EntropyBound, "accept", "sampler"), (diffusion.StableAndConfident, "done", "sampler")]
    found += [(model.ops, "noise", "sampler")]
    return [(owner, name, stage) for owner, name, stage in found if owner is not None and hasattr(owner, name)]


@contextmanager
def wrapped(model: Transformer, ledger: Ledger) -> Iterator[None]:
    """Timers around all parts; everything is as before afterwards. Passes are not replayed: that calls no part."""
    undo: list[tuple[Any, str, Any]] = []
    missing = object()
    try:
        for owner, name, stage in parts(model):
            undo.append((owner, name, vars(owner).get(name, missing)))
            setattr(owner, name, ledger.wrap(getattr(owner, name), stage))
        with eager():
            yield
    finally:
        for owner, name, before in reversed(undo):
            if before is missing:
                delattr(owner, name)
            else:
                setattr(owner, name, before)


@dataclass(frozen=True)
class Split:
    """Mean seconds of every stage over the middle half of all passes, by their total; so the stages add up to `total`.

    unseen: stages that no wrapped call belonged to. Their time is contained in "norms" or "overhead".
    slowdown: median time of an instrumented pass over that of a plain one.
    """

    stages: dict[str, float]
    total: float
    passes: int
    slowdown: float
    unseen: tuple[str, ...]


def watch_stages(
    llm: LLM, prompt: Sequence[int], config: GenerationConfig, now: Callable[[], float]
) -> tuple[Watched, list[dict[str, float]], set[str]]:
    """An instrumented run -> its times, the stages of every pass but each canvas's first, and the stages seen."""
    ledger = Ledger(marks(llm.model.device))
    per_pass: list[dict[str, float]] = []

    def on_draft(event: Draft) -> None:
        seconds = ledger.take()
        if event.pass_index > 0:  # the time before a canvas's first draft contains prefill or a commit
            per_pass.append(seconds)

    with wrapped(llm.model, ledger):
        run = watch(llm, prompt, config, now, on_draft)
    return run, per_pass, set(ledger.calls)


def split(instrumented: Sequence[tuple[Watched, list[dict[str, float]], set[str]]], plain: Sequence[Watched]) -> Split:
    """What the instrumented runs say, and what instrumentation cost them beside the plain ones."""
    rows = []
    for run, per_pass, _ in instrumented:
        for seconds, total in zip(per_pass, run.between, strict=True):
            rows.append((total, seconds | {"overhead": total - sum(seconds.values())}))
    rows.sort(key=lambda row: row[0])
    quarter = len(rows) // 4
    middle = rows[quarter : len(rows) - quarter]
    stages = {stage: sum(row.get(stage, 0.0) for _, row in middle) / len(middle) for stage in STAGES}
    seen = set().union(*(names for _, _, names in instrumented))
    slow = figure([total for total, _ in rows]).median
    quick = figure([seconds for run in plain for seconds in run.between]).median
    unseen = tuple(stage for stage in STAGES if stage not in seen and stage != "overhead")
    return Split(stages, sum(stages.values()), len(middle), slow / quick, unseen)

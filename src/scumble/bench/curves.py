"""How the cost of a pass grows: with the canvas, the context, the experts, the vocabulary and the batch.

Every point is the median time of a few passes on random ids, next to its floor. The canvas, context and batch curves
use the model under test. The experts and vocabulary curves need models of other sizes, so they are measured on random
ones, and only where the model under test is a random shape itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from scumble.bench import counts, roofline
from scumble.bench.events import fixed_config
from scumble.bench.shapes import random_model, random_prompt, weight_bytes
from scumble.bench.subject import PLAIN, Subject
from scumble.bench.timing import clock, figure
from scumble.config import ModelConfig
from scumble.events import Draft
from scumble.llm import LLM

PASSES = 5
LARGEST_POINT = 8e9  # bytes of weights; a curve's point with more is left out


def measure_curves(subject: Subject, quick: bool, seed: int, said: Callable[[str], None]) -> dict[str, Any]:
    """{name: [{"at", "seconds": a figure, "floor_seconds"}, …]}"""
    llm, config, dtype = subject.llm, subject.config, subject.number_format
    limits = roofline.measure(config, config.canvas_length, llm.model.device, quick)
    length, room = config.canvas_length, config.max_position_embeddings
    context = min(128, room - 2 * length)
    bench = Point(limits, dtype, seed)

    def sweep(name: str, values: Sequence[int], point: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
        out = []
        for value in values:
            said(f"curve: {name} {value:,}")
            out.append({"at": value} | point(value))
        return out

    canvases = _powers(length, 2 if quick else 4)
    contexts = [n for n in ((128, 1024) if quick else (128, 512, 1024, 2048, 4096, 8192)) if n + length <= room]
    batches = (1, 2) if quick else (1, 2, 4)
    curves = {
        "canvas length": sweep("canvas", canvases, lambda n: bench.measure(llm, n, context)),
        "context length": sweep("context", contexts, lambda n: bench.measure(llm, length, n)),
        "batch": sweep("batch", batches, lambda n: bench.measure(llm, length, context, rows=n)),
    }
    if subject.is_random and dtype in PLAIN:
        own = {"experts": config.num_experts, "vocabulary": config.vocab_size}

        def other(**changes: int) -> dict[str, Any]:
            model = random_model(replace(config, **changes), llm.model.dtype, seed, llm.model.device)
            return bench.measure(LLM(model), length, context)

        counts_of = {"experts": "num_experts", "vocabulary": "vocab_size"}
        for name, field in counts_of.items():
            values = [own[name] // 4, own[name] // 2, own[name]] if quick else _around(own[name])
            least = config.top_k_experts if name == "experts" else max(config.eos_token_ids) + 1
            fit = [n for n in values if n >= least and _fits(replace(config, **{field: n}), dtype)]
            curves[name] = sweep(name, fit, lambda n, field=field: other(**{field: n}))
    return curves


def _powers(length: int, count: int) -> list[int]:
    """length, and its halves down from it, ascending."""
    return sorted({max(1, length >> shift) for shift in range(count)})


def _around(value: int) -> list[int]:
    return [value // 4, value // 2, value, 2 * value]


def _fits(config: ModelConfig, dtype: str) -> bool:
    return weight_bytes(config, dtype) <= LARGEST_POINT


class Point:
    """One point of a curve: the time between passes, for given sizes."""

    def __init__(self, limits: roofline.Limits, dtype: str, seed: int):
        self.limits = limits
        self.dtype = dtype
        self.seed = seed

    def measure(self, llm: LLM, canvas: int, context: int, rows: int = 1) -> dict[str, Any]:
        config = llm.model.config
        settings = fixed_config(PASSES, canvas, self.seed).merged({"canvas_length": canvas})
        prompts = [random_prompt(config, context, self.seed + row) for row in range(rows)]
        now = clock(llm.model.device)
        last = [0.0]
        between: list[float] = []
        with torch.no_grad():
            for event in llm.stream_ids(prompts, settings):
                if isinstance(event, Draft) and event.row == rows - 1:  # the pass is done when its last row is
                    at = now()
                    if event.pass_index > 1:  # the second pass is the first with a soft embedding: a warm-up as well
                        between.append(at - last[0])
                    last[0] = at
        work = counts.pass_work(config, canvas, context, rows)
        least = sum(roofline.floor(one, self.dtype, self.limits) for one in work.values())
        return {"seconds": figure(between).as_json(), "floor_seconds": least}

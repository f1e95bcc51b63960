"""A projection, not a measurement: the release's shape on machines that were not at hand, from their datasheets.

A pass is the sum over its stages of the longer of two times, arithmetic at the machine's peak and weights at its memory
bandwidth. Nothing reaches it: it leaves out launches, norms, attention over a long context that does not fit caches,
and every loss of a real kernel. What it is good for: what is impossible, what a format buys, and what bounds what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scumble.bench import counts
from scumble.bench.counts import Work
from scumble.bench.shapes import RELEASE
from scumble.config import ModelConfig

RESERVE = 0.92  # of a machine's memory; the rest is the system's, activations and the cache


@dataclass(frozen=True)
class Machine:
    """bandwidth: bytes/s. bf16, eight_bit: dense operations/s (no sparsity, float32 or int32 sums). memory: bytes."""

    name: str
    bandwidth: float
    bf16: float
    eight_bit: float
    memory: float
    source: str


MACHINES = (
    Machine("H100 SXM", 3.35e12, 989e12, 1979e12, 80e9, "NVIDIA's datasheet"),
    Machine("H200 SXM", 4.8e12, 989e12, 1979e12, 141e9, "NVIDIA's datasheet"),
    Machine("RTX 5090", 1.792e12, 209.5e12, 419e12, 32e9, "NVIDIA's architecture paper, sums in float32"),
    Machine("DGX Spark", 0.273e12, 125e12, 250e12, 128e9, "1 PFLOP/s of sparse FP4, halved per step to dense bf16"),
    Machine(
        "16-core desktop", 89.6e9, 9.2e12, 18.4e12, 96e9,
        "two channels of DDR5-5600; 2 × 512-bit products a cycle, 4.5 GHz, AVX-512 BF16 and VNNI",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Format:
    """Bits a weight of the experts; everything else stays bfloat16. eight_bit: do the experts multiply in 8 bits?"""

    name: str
    expert_bits: float
    eight_bit: bool


FORMATS = (
    Format("bf16", 16, False),
    Format("8-bit experts", 8, True),
    Format("4-bit experts", 4.125, False),  # a 16-bit scale for every 128 weights; multiplied as bfloat16
)


def project_release(canvas: int = 256, context: int = 128, passes: int = 16) -> dict[str, Any]:
    """Every machine with every format -> one JSON object."""
    rows = [project(RELEASE, machine, form, canvas, context, passes) for machine in MACHINES for form in FORMATS]
    return {
        "projection": True,
        "settings": {"canvas": canvas, "context": context, "passes": passes, "streams": 1},
        "machines": {machine.name: machine.source for machine in MACHINES},
        "rows": rows,
    }


def project(
    config: ModelConfig, machine: Machine, form: Format, canvas: int, context: int, passes: int
) -> dict[str, Any]:
    """Floors of one machine and format, in seconds and tokens a second."""
    weights = stored_bytes(counts.parameters(config), form)
    one_pass = floors(counts.pass_work(config, canvas, context), machine, form)
    step = floors(counts.encode_work(config, 1, context + canvas // 2), machine, form)
    prefill = sum(floors(counts.encode_work(config, context, 0), machine, form).values())
    commit = sum(floors(counts.encode_work(config, canvas, context, predicted=0), machine, form).values())
    pass_seconds, step_seconds = sum(one_pass.values()), sum(step.values())
    # In a long answer every canvas is encoded once; the prompt is amortized over it and left out on both sides.
    canvas_seconds = passes * pass_seconds + commit
    return {
        "machine": machine.name,
        "format": form.name,
        "weight_bytes": weights,
        "fits": weights <= RESERVE * machine.memory,
        "pass_seconds": pass_seconds,
        "stages_seconds": one_pass,
        "bound": bound(counts.pass_work(config, canvas, context), machine, form),
        "prefill_seconds": prefill,
        "commit_seconds": commit,
        "tokens_per_second": canvas / canvas_seconds,
        "autoregressive_tokens_per_second": 1 / step_seconds,
    }


def stored_bytes(elements: Mapping[str, float], form: Format) -> float:
    return sum(count * bits(stage, form) / 8 for stage, count in elements.items())


def bits(stage: str, form: Format) -> float:
    return form.expert_bits if stage == "experts" else 16


def sides(stage: str, work: Work, machine: Machine, form: Format) -> tuple[float, float]:
    """Seconds of arithmetic and of memory traffic of one stage."""
    rate = machine.eight_bit if stage == "experts" and form.eight_bit else machine.bf16
    moved = work.weights * bits(stage, form) / 8 + work.cached * 2
    return work.flops / rate, moved / machine.bandwidth


def floors(work: Mapping[str, Work], machine: Machine, form: Format) -> dict[str, float]:
    return {stage: max(sides(stage, one, machine, form)) for stage, one in work.items()}


def bound(work: Mapping[str, Work], machine: Machine, form: Format) -> str:
    """What most of a pass's floor is made of: "memory" or "arithmetic"."""
    pairs = [sides(stage, one, machine, form) for stage, one in work.items()]
    by_memory = sum(moved for computed, moved in pairs if moved > computed)
    return "memory" if by_memory >= sum(max(pair) for pair in pairs) / 2 else "arithmetic"

"""This machine's own limits, measured: how fast it multiplies matrices of the model's sizes, how fast it reads memory.

A stage cannot be quicker than its arithmetic at the best measured rate, nor than its weights and cached keys at the
measured bandwidth; the larger of the two is its floor. Rates are the best of a few tries, because a limit is wanted;
the times they are held against are medians.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scumble.bench.counts import Work
from scumble.bench.timing import clock, timed
from scumble.config import ModelConfig

COMPUTE = {
    "float32": "float32", "bfloat16": "bfloat16", "int8": "int8", "int4": "int8", "fp8": "fp8", "nvfp4": "fp8",
}  # fmt: skip
"""The arithmetic that a weight format allows: integer weights multiply with activations made int8 on the way."""
BITS = {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 4.5, "fp8": 8, "nvfp4": 4.5}  # a weight, with its scale


@dataclass(frozen=True)
class Limits:
    """gemm: operations a second by arithmetic, the best over all sizes. sizes: the rate of each. bandwidth: bytes/s.

    on_card: int4 weights multiply with bfloat16 activations there.
    """

    gemm: dict[str, float]
    sizes: dict[str, dict[str, float]]
    bandwidth: float
    on_card: bool = False

    def rate(self, dtype: str) -> float:
        """Operations a second that a weight format's arithmetic allows; bfloat16's where that was not measurable."""
        kind = "bfloat16" if self.on_card and dtype == "int4" else COMPUTE[dtype]
        return self.gemm.get(kind) or self.gemm["bfloat16"]

    def as_json(self) -> dict[str, Any]:
        return {
            "gemm_flops": self.gemm,
            "gemm_flops_by_size": self.sizes,
            "bandwidth_bytes_per_second": self.bandwidth,
            "method": "best of several; products by torch.matmul and torch._int_mm, bandwidth by summing or copying",
        }


def measure(config: ModelConfig, canvas: int, device: torch.device, quick: bool = False) -> Limits:
    """Rates at the sizes of this model's products, and of one large product, and the memory bandwidth."""
    tries = 3 if quick else 10
    sizes = gemm_sizes(config, canvas)
    if not quick:
        sizes["large"] = (1024, 2048, 2048)
    by_size: dict[str, dict[str, float]] = {}
    for dtype in ("float32", "bfloat16", "int8", *(("fp8",) if device.type == "cuda" else ())):
        rates = {name: gemm_rate(dtype, *size, device, tries) for name, size in sizes.items()}
        found = {name: rate for name, rate in rates.items() if rate is not None}
        if found:
            by_size[dtype] = found
    best = {dtype: max(rates.values()) for dtype, rates in by_size.items()}
    on_card = device.type == "cuda"  # its cache holds more, and a call there takes long beside a read of little
    megabytes = 2000 if on_card else 64 if quick else 512
    return Limits(best, by_size, bandwidth(device, megabytes, tries), on_card)


def gemm_sizes(config: ModelConfig, canvas: int) -> dict[str, tuple[int, int, int]]:
    """(rows, inner, columns) of the products that a pass is made of."""
    full, hidden = config.layers[-1], config.hidden_size
    a_group = max(1, canvas * config.top_k_experts // config.num_experts)
    return {
        "attention": (canvas, hidden, config.num_attention_heads * full.head_dim),
        "dense": (canvas, hidden, 2 * config.intermediate_size),
        "expert": (a_group, hidden, 2 * config.moe_intermediate_size),
        "vocabulary": (canvas, hidden, min(config.vocab_size, 4096)),
    }


def gemm_rate(dtype: str, rows: int, inner: int, columns: int, device: torch.device, tries: int) -> float | None:
    """Operations a second of x [rows, inner] · wᵀ [inner, columns]; None where torch has no such product."""
    if dtype == "int8":
        left = torch.randint(-100, 100, (rows, inner), dtype=torch.int8, device=device)
        right = torch.randint(-100, 100, (columns, inner), dtype=torch.int8, device=device)
        multiply: Callable[[], Tensor] = lambda: torch._int_mm(left, right.T)  # noqa: E731  # pyright: ignore[reportPrivateImportUsage]
    elif dtype == "fp8":
        left, right = (torch.randn(n, inner, device=device).to(torch.float8_e4m3fn) for n in (rows, columns))
        one = torch.ones((), device=device)
        multiply = lambda: torch._scaled_mm(left, right.T, one, one, out_dtype=torch.bfloat16)  # noqa: E731  # pyright: ignore[reportPrivateImportUsage]
    else:
        left = torch.randn(rows, inner, device=device).to(getattr(torch, dtype))
        right = torch.randn(columns, inner, device=device).to(getattr(torch, dtype))
        multiply = lambda: left @ right.T  # noqa: E731
    try:
        multiply()
    except (RuntimeError, NotImplementedError):
        return None
    now = clock(device)
    once = max(timed(multiply, now), 1e-7)
    inside = max(1, min(50, int(2e-3 / once)))  # about two milliseconds a try, so that the clock does not count

    def several() -> None:
        for _ in range(inside):
            multiply()

    return 2 * rows * inner * columns * inside / min(timed(several, now) for _ in range(tries))


def bandwidth(device: torch.device, megabytes: int, tries: int) -> float:
    """Bytes a second: the better of summing a large buffer and copying one (read and write counted)."""
    source = torch.ones(megabytes * 2**18, device=device)  # float32
    target = torch.empty_like(source)
    now = clock(device)
    source.sum()
    target.copy_(source)
    read = source.nbytes / min(timed(source.sum, now) for _ in range(tries))
    copied = 2 * source.nbytes / min(timed(lambda: target.copy_(source), now) for _ in range(tries))
    return max(read, copied)


def floor(work: Work, dtype: str, limits: Limits) -> float:
    """Seconds below which a stage cannot get on this machine. Cached keys and values have the activations' width."""
    activation = 4 if dtype == "float32" else 2
    moved = work.weights * BITS[dtype] / 8 + work.cached * activation
    return max(work.flops / limits.rate(dtype), moved / limits.bandwidth)


def bound(work: Work, dtype: str, limits: Limits) -> str:
    """What holds a stage: "arithmetic" or "memory"."""
    activation = 4 if dtype == "float32" else 2
    moved = work.weights * BITS[dtype] / 8 + work.cached * activation
    return "arithmetic" if work.flops / limits.rate(dtype) >= moved / limits.bandwidth else "memory"

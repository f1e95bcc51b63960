"""The day itself: where it runs, what has been found, how much time is left; and the products over a few tile sizes."""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from gpu_pass import random_weight

from scumble.bench.shapes import RELEASE, TINY
from scumble.ops.triton import experts, grouping, linear
from scumble.ops.triton.activations import for_format
from scumble.ops.triton.launch import Tiles, architecture, tile_table, with_tiles

T = TypeVar("T")


class Day:
    """What has been found so far, and how much time is left."""

    def __init__(self, toy: bool, minutes: float):
        self.toy = toy
        self.device = torch.device("cpu" if toy else "cuda")
        self.end = time.monotonic() + 60 * minutes
        self.dtype = torch.bfloat16
        self.config = replace(TINY, layers=TINY.layers[-2:], canvas_length=8) if toy else RELEASE
        self.found: dict[str, Any] = {}

    def save(self, folder: Path) -> None:
        """Whole or not at all: the process that writes may be ended at any moment."""
        draft = folder / "gpu-day.json.new"
        draft.write_text(json.dumps(self.found, indent=1), encoding="utf-8")
        draft.replace(folder / "gpu-day.json")

    def load(self, folder: Path) -> None:
        """What other parts have found."""
        path = folder / "gpu-day.json"
        self.found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def left(self, seconds: float) -> bool:
        """Is there time for something that takes so long?"""
        return time.monotonic() + seconds < self.end

    def milliseconds(self, call: Callable[[], Any], repeats: int = 10) -> float:
        """Median of `repeats` runs after two to warm up; on a card by its own clock."""
        if self.toy:
            start = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - start)
        for _ in range(2):
            call()
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for first, last in marks:
            first.record()
            call()
            last.record()
        torch.cuda.synchronize()
        return statistics.median(first.elapsed_time(last) for first, last in marks)

    def graph(self, call: Callable[[], T]) -> tuple[Callable[[], Any], T]:
        """A call that has run before, captured: how to replay it, and what it writes to. At toy size itself."""
        if self.toy:
            return call, call()
        torch.cuda.synchronize()
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph):
                result = call()
        finally:
            torch.cuda.set_stream(before)  # a capture that fails leaves its own stream behind
        return graph.replay, result

    def free(self) -> None:
        """Memory of what is not needed any more, also of what refers to itself."""
        gc.collect()
        if not self.toy:
            torch.cuda.empty_cache()


class Nowhere(Day):
    """A day on tensors without memory, with a layer of each kind: its launches can be recorded."""

    def __init__(self, day: Day):
        super().__init__(day.toy, 0)
        self.device = torch.device("meta")
        self.config = replace(day.config, layers=tuple(dict.fromkeys(day.config.layers)))

    def left(self, seconds: float) -> bool:
        return True

    def milliseconds(self, call: Callable[[], Any], repeats: int = 10) -> float:
        call()
        return 1.0

    def graph(self, call: Callable[[], T]) -> tuple[Callable[[], Any], T]:
        return call, call()


def described(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"


DENSE = 12  # of them a call: 150 MB in four bits
CANDIDATES = {
    "up": [(32, 64, 64, 4, 4), (32, 64, 128, 4, 3), (16, 64, 128, 4, 4), (32, 128, 64, 8, 3), (64, 64, 64, 4, 4)],
    "down": [(32, 128, 64, 4, 4), (32, 64, 64, 4, 4), (32, 64, 128, 4, 3), (32, 128, 64, 8, 4)],
    "linear": [(64, 64, 64, 4, 4), (128, 64, 64, 4, 4), (64, 128, 64, 4, 3), (64, 64, 128, 4, 3), (128, 128, 64, 8, 3)],
}


def tiles(day: Day) -> Iterator[dict[str, Any]]:
    """Every product over a few tile sizes, quickest first. up and down share BM: one grouping serves both; their time
    is that of both, with the grouping."""
    arch = architecture(day.device)
    for format in ("fp8", "int4", "plain"):
        for kind, sizes in CANDIDATES.items():
            name = f"{kind} {format}"
            if name not in tile_table()[arch]:
                yield {"operation": name, "skipped": f"no tiles for sm_{arch}"}
                continue
            if not day.left(20):
                yield {"operation": name, "skipped": "no time left"}
                continue
            try:
                call, nbytes = product(day, kind, format)
            except Exception as error:  # no memory, for instance
                yield {"operation": name, "error": described(error)}
                continue
            rows = []
            for bm, bn, bk, warps, stages in sizes[:1] if day.toy else sizes:
                chosen = Tiles(warps, stages, {"BM": bm, "BN": bn, "BK": 128 if format == "int4" else bk})
                paired = f"{'down' if kind == 'up' else 'up'} {format}"
                other = {} if kind == "linear" else {paired: with_rows(tile_table()[arch][paired], bm)}
                row: dict[str, Any] = {"operation": name, **chosen.sizes, "warps": warps, "stages": stages}
                try:
                    with with_tiles({name: chosen, **other}):
                        call()
                        row["ms"] = day.milliseconds(day.graph(call)[0])  # launched one by one, the host's time counts
                        row["GB/s"] = nbytes / row["ms"] / 1e6
                except Exception as error:  # too much shared memory, for instance
                    row["error"] = described(error)
                rows.append(row)
            yield from sorted(rows, key=lambda row: row.get("ms", float("inf")))


def with_rows(old: Tiles, bm: int) -> Tiles:
    return replace(old, sizes={**old.sizes, "BM": bm})


def product(day: Day, kind: str, format: str) -> tuple[Callable[[], Any], int]:
    """A call of one product at the shape, both halves of the experts or the widest dense one; bytes of its weights. Of
    the dense one several, so that a card's cache does not hold them."""
    c, tokens = day.config, day.config.canvas_length
    x = for_format(torch.randn(tokens, c.hidden_size, device=day.device).to(day.dtype), format)
    if kind == "linear":
        shape = c.num_attention_heads * max(layer.head_dim for layer in c.layers), c.hidden_size
        several = [random_weight(format, day.dtype, day.device, *shape) for _ in range(1 if day.toy else DENSE)]
        return lambda: [linear.linear(x, weight) for weight in several][-1], sum(one.nbytes for one in several)
    up = random_weight(format, day.dtype, day.device, c.num_experts, 2 * c.moe_intermediate_size, c.hidden_size)
    down = random_weight(format, day.dtype, day.device, c.num_experts, c.hidden_size, c.moe_intermediate_size)
    chosen = torch.rand(tokens, c.num_experts, device=day.device).topk(c.top_k_experts).indices.int()
    weights = torch.rand(tokens, c.top_k_experts, device=day.device)

    def both() -> Any:
        return experts.experts(x, weights, grouping.group(chosen, c.num_experts, format), up, down)

    return both, up.nbytes + down.nbytes


def write_table(day: Day, folder: Path) -> Path:
    """The quickest tiles of each operation, in the words of tiles.toml, to be looked at and copied there."""
    arch = architecture(day.device)
    best: dict[str, dict[str, Any]] = {}
    for row in day.found["tiles"]:  # the quickest of each comes first
        if "ms" in row:
            best.setdefault(row["operation"], row)
    lines = [f"# {day.found['card']}; from benchmarks/gpu_day.py"]
    for name, row in best.items():
        sizes = {key: value for key, value in row.items() if key not in ("operation", "ms", "GB/s")}
        lines.append(f'[operations."{name}"]')
        lines.append(f"{arch} = {{ {', '.join(f'{key} = {value}' for key, value in sizes.items())} }}")
    path = folder / f"tiles-sm{arch}.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path

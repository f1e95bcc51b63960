"""The first minutes on a card: are the kernels right there, how fast is each, and how fast is a whole pass?

    python benchmarks/gpu_day.py                    # at most 8 minutes; prints one table, writes tiles-<card>.toml
    python benchmarks/gpu_day.py --toy              # the same code on the CPU at toy size, by Triton's interpreter

In this order, so that what matters most comes first if time runs out:

  self-check   every operation, and products in every number format, with the reason where one fails
  bandwidth    of reading and of copying
  engine       generations by the package itself, release's shape, random weights, fp8 and int4: passes replayed as CUDA
               graphs and operation by operation (the same tokens?), first draft, tokens a second, steps, memory
  passes       the kernels alone, without the engine (gpu_pass.py): bfloat16, fp8, int4; 1, 4 and 8 rows; context 1k and
               32k; single steps; each eager and as one graph (the same bits?)
  tiles        every product over a few tile sizes

Figures of other engines stand beside ours as published; they were not measured here. What has been found is written
after every part, so a run that is cut off leaves a file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton

sys.path.insert(0, str(Path(__file__).parent))

from gpu_pass import Pass, random_weight

from scumble import LLM
from scumble.bench import workloads
from scumble.bench.shapes import RELEASE, TINY, random_model, random_prompt
from scumble.bench.timing import clock, figure
from scumble.engine import replay
from scumble.formats import Format
from scumble.ops.triton import experts, grouping, linear, selfcheck
from scumble.ops.triton.activations import for_format
from scumble.ops.triton.launch import Tiles, architecture, tile_table, with_tiles
from scumble.ops.triton.ops import TritonOps

PUBLISHED = {  # ms a pass of 256 tokens, one stream
    "vLLM, H100, fp8, 16 fixed passes": "14.9 ms a pass, 1,008 tok/s",
    "vLLM, H100, Gemma 4 26B-A4B, one token at a time": "197 tok/s",
}
FORMATS = {"bf16": ("plain", "plain"), "fp8": ("fp8", "fp8"), "int4": ("int4", "fp8")}  # of experts, of the rest
PASSES = 16


class Day:
    """What has been found so far, and how much time is left."""

    def __init__(self, toy: bool, minutes: float):
        self.toy = toy
        self.device = torch.device("cpu" if toy else "cuda")
        self.end = time.monotonic() + 60 * minutes
        self.dtype = torch.bfloat16
        self.config = replace(TINY, layers=TINY.layers[-2:], canvas_length=8) if toy else RELEASE
        self.found: dict[str, Any] = {}

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


def card(day: Day) -> dict[str, Any]:
    facts: dict[str, Any] = {"torch": torch.__version__, "triton": triton.__version__}
    if not day.toy:
        about = torch.cuda.get_device_properties(day.device)
        facts |= {
            "card": about.name,
            "memory GB": round(about.total_memory / 1e9, 1),
            "sm": about.major * 10 + about.minor,
        }
    return facts


def bandwidth(day: Day) -> dict[str, float]:
    """GB/s of reading (a maximum over int32) and of copying (both ways counted)."""
    numbers = 2**16 if day.toy else 2**30
    block = torch.zeros(numbers, dtype=torch.int32, device=day.device)
    other = torch.empty_like(block)
    read = day.milliseconds(lambda: block.max())
    copy = day.milliseconds(lambda: other.copy_(block))
    return {"read": block.nbytes / read / 1e6, "copy": 2 * block.nbytes / copy / 1e6}


def engine(day: Day) -> Iterator[dict[str, Any]]:
    """Generations by the package: what a user gets."""
    arch = architecture(day.device)
    forms: tuple[Format, ...] = ("fp8", "int4")
    for form in forms:
        if f"linear {form}" not in tile_table()[arch]:
            yield {"format": form, "skipped": f"no tiles for sm_{arch}"}
        elif not day.left(0 if day.toy else 75):
            yield {"format": form, "skipped": "no time left"}
        else:
            try:
                yield {"format": form, **generations(day, form)}
            except Exception as error:  # one format that fails must not end the day
                yield {"format": form, "error": described(error)}
            if not day.toy:
                torch.cuda.empty_cache()


def generations(day: Day, form: Format) -> dict[str, Any]:
    """A fixed number of passes a canvas, one stream, replayed and eager in turns; then single steps."""
    now, passes = clock(day.device), 3 if day.toy else PASSES
    begin = now()
    if day.toy:
        model = random_model(day.config, day.dtype, 0, day.device).use(TritonOps()).convert(form)
    else:
        model = random_model(day.config, day.dtype, 0, day.device, form)
    llm, row = LLM(model), {"made in s": now() - begin, "weights GB": model.nbytes / 1e9}
    short, long = (random_prompt(day.config, n, 0) for n in ((6, 12) if day.toy else (128, 1024)))
    tokens = day.config.canvas_length * (1 if day.toy else 2)

    def run(prompt: list[int]) -> Any:
        return workloads.run_fixed(llm, prompt, passes, tokens, 1, now)

    run(long)  # kernels are compiled, graphs captured
    replayed, plain = [run(long) for _ in range(1 if day.toy else 2)], []
    with replay.eager():
        plain.append(run(long))
    for name, runs in (("replayed", replayed), ("eager", plain)):
        row[f"{name} ms a pass"] = 1e3 * figure([seconds for one in runs for seconds in one.between]).median
        row[f"{name} tok/s"] = max(one.valid / one.seconds for one in runs)
    row["same tokens"] = all(one.ids == plain[0].ids for one in replayed)
    row["first draft ms, short prompt"] = 1e3 * (run(short).first_draft or 0.0)
    steps = workloads.run_steps(llm, short, 4 if day.toy else 48, 1, now)
    row["ms a step"] = 1e3 * figure(steps.steps).median
    if not day.toy:
        row["peak GB"] = torch.cuda.max_memory_allocated(day.device) / 1e9
        torch.cuda.reset_peak_memory_stats(day.device)
    return row


def described(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"


def passes(day: Day) -> Iterator[dict[str, Any]]:
    """Whole passes and steps, by format, rows and context."""
    arch = architecture(day.device)
    contexts = (16,) if day.toy else (1024, 32_768)
    for name, (format, dense) in FORMATS.items():
        if f"up {format}" not in tile_table()[arch] or f"linear {dense}" not in tile_table()[arch]:
            yield {"format": name, "skipped": f"no tiles for sm_{arch}"}
            continue
        if not day.left(60 if not day.toy else 0):
            yield {"format": name, "skipped": "no time left"}
            continue
        model = Pass(day.config, format, dense, day.dtype, day.device)
        cases = [(rows, day.config.canvas_length, context) for context in contexts for rows in (1, 4, 8)]
        cases += [(rows, 1, contexts[0]) for rows in (1, 8)]
        for rows, tokens, context in cases[:1] + cases[-1:] if day.toy else cases:
            if not day.left(10):
                break
            yield {"format": name, "GB": model.nbytes / 1e9, **one_pass(day, model, rows, tokens, context)}
        del model
        if not day.toy:
            torch.cuda.empty_cache()


def one_pass(day: Day, model: Pass, rows: int, tokens: int, context: int) -> dict[str, Any]:
    """ms of a pass, eager and replayed, and whether both give the same bits."""
    row: dict[str, Any] = {"rows": rows, "tokens": tokens, "context": context}
    try:
        model.prepare(rows, tokens, context)
        eager = model()
        row["eager ms"] = day.milliseconds(model, 5)
        row["finite"] = bool(torch.isfinite(eager[1]).all())
        if day.toy:
            return row
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = model()
        row["graph ms"] = day.milliseconds(graph.replay)
        row["graph = eager"] = all(torch.equal(a, b) for a, b in zip(eager, captured, strict=True))
        row["watts"] = power()
        per_pass = 1 if tokens == 1 else PASSES
        row["tok/s"] = 1e3 * rows * tokens / (row["graph ms"] * per_pass)
    except Exception as error:  # one case that fails must not end the day
        row["error"] = described(error)
    return row


def power() -> float | None:
    """Watts, where torch can ask."""
    try:
        return torch.cuda.power_draw() / 1e3
    except Exception:
        return None


CANDIDATES = {
    "up": [(32, 64, 64, 4, 4), (32, 64, 128, 4, 3), (16, 64, 128, 4, 4), (32, 128, 64, 8, 3), (64, 64, 64, 4, 4)],
    "down": [(32, 128, 64, 4, 4), (32, 64, 64, 4, 4), (32, 64, 128, 4, 3), (32, 128, 64, 8, 4)],
    "linear": [(64, 64, 64, 4, 4), (128, 64, 64, 4, 4), (64, 128, 64, 4, 3), (64, 64, 128, 4, 3), (128, 128, 64, 8, 3)],
}


def tiles(day: Day) -> dict[str, list[dict[str, Any]]]:
    """Every product over a few tile sizes, quickest first. up and down share BM: one grouping serves both."""
    results: dict[str, list[dict[str, Any]]] = {}
    arch = architecture(day.device)
    for format in ("plain", "fp8", "int4"):
        for kind, sizes in CANDIDATES.items():
            name = f"{kind} {format}"
            if name not in tile_table()[arch] or not day.left(20):
                continue
            call = product(day, kind, format)
            rows = []
            for bm, bn, bk, warps, stages in sizes[:1] if day.toy else sizes:
                chosen = Tiles(warps, stages, {"BM": bm, "BN": bn, "BK": 128 if format == "int4" else bk})
                paired = f"{'down' if kind == 'up' else 'up'} {format}"
                other = {} if kind == "linear" else {paired: with_rows(tile_table()[arch][paired], bm)}
                row: dict[str, Any] = {**chosen.sizes, "warps": warps, "stages": stages}
                try:
                    with with_tiles({name: chosen, **other}):
                        row["ms"] = day.milliseconds(call)
                except Exception as error:  # too much shared memory, for instance
                    row["error"] = type(error).__name__
                rows.append(row)
            results[name] = sorted(rows, key=lambda row: row.get("ms", 1e9))

    return results


def with_rows(old: Tiles, bm: int) -> Tiles:
    return replace(old, sizes={**old.sizes, "BM": bm})


def product(day: Day, kind: str, format: str) -> Callable[[], Any]:
    """A call of one product at the shape: both halves of the experts, or the widest dense one."""
    c, tokens = day.config, day.config.canvas_length
    x = for_format(torch.randn(tokens, c.hidden_size, device=day.device).to(day.dtype), format)
    if kind == "linear":
        weight = random_weight(format, day.dtype, day.device, c.num_attention_heads * 32, c.hidden_size)
        return lambda: linear.linear(x, weight)
    up = random_weight(format, day.dtype, day.device, c.num_experts, 2 * c.moe_intermediate_size, c.hidden_size)
    down = random_weight(format, day.dtype, day.device, c.num_experts, c.hidden_size, c.moe_intermediate_size)
    chosen = torch.rand(tokens, c.num_experts, device=day.device).topk(c.top_k_experts).indices.int()
    weights = torch.rand(tokens, c.top_k_experts, device=day.device)
    return lambda: experts.experts(x, weights, grouping.group(chosen, c.num_experts, format), up, down)


def write_table(day: Day, folder: Path) -> Path:
    """The quickest tiles of each operation, in the words of tiles.toml, to be looked at and copied there."""
    arch = architecture(day.device)
    lines = [f"# {day.found['card']}; from benchmarks/gpu_day.py"]
    for name, rows in day.found["tiles"].items():
        if rows and "ms" in rows[0]:
            best = {key: value for key, value in rows[0].items() if key != "ms"}
            lines.append(f'[operations."{name}"]')
            lines.append(f"{arch} = {{ {', '.join(f'{key} = {value}' for key, value in best.items())} }}")
    path = folder / f"tiles-sm{arch}.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def ratios(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Canvases against single steps on the same weights, both as graphs; four rows against one."""
    timed = {
        (row["format"], row["rows"], row["tokens"] == 1, row["context"]): row["graph ms"]
        for row in rows
        if "graph ms" in row
    }
    for (form, count, is_step, context), milliseconds in timed.items():
        if count == 1 and not is_step and (step := timed.get((form, 1, True, context))):
            tokens = RELEASE.canvas_length / PASSES
            yield f"{form}: a canvas in {PASSES} passes is {tokens * step / milliseconds:.1f} x single steps"
        if count == 1 and not is_step and (four := timed.get((form, 4, False, context))):
            yield f"{form}, context {context}: four rows take {four / milliseconds:.2f} x the time of one"


def show(day: Day) -> None:
    print(json.dumps(day.found["card"]))
    verdict = day.found["self-check"]
    print(
        "self-check: " + ("all operations pass" if not verdict else "; ".join(f"{k}: {v}" for k, v in verdict.items()))
    )
    faults = {form: why for form, why in day.found["formats"].items() if why}
    print("formats: " + ("all pass" if not faults else "; ".join(f"{k}: {v}" for k, v in faults.items())))
    print("bandwidth, GB/s: " + ", ".join(f"{k} {v:,.0f}" for k, v in day.found["bandwidth"].items()))
    for row in (*day.found["engine"], *day.found["passes"]):
        print("  ".join(f"{k} {v:,.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    for name, theirs in PUBLISHED.items():
        print(f"published, not measured here: {name}: {theirs}")
    for line in ratios(day.found["passes"]):
        print(line)
    for name, rows in day.found["tiles"].items():
        print(f"{name}: " + "; ".join(json.dumps(row) for row in rows[:2]))


def check_formats(day: Day) -> dict[str, str | None]:
    """What is wrong with products in each format that this card has."""
    have = tile_table()[architecture(day.device)]
    forms = [form for form in selfcheck.ROUNDING if f"up {form}" in have]
    return {form: selfcheck.examine_format(day.device, day.dtype, day.config, form) for form in forms}


PARTS: dict[str, Callable[[Day], Any]] = {
    "card": card,
    "self-check": lambda day: selfcheck.examine(day.device, day.dtype, day.config),
    "formats": check_formats,
    "bandwidth": bandwidth,
    "engine": lambda day: list(engine(day)),
    "passes": lambda day: list(passes(day)),
    "tiles": tiles,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="toy size, on the CPU (set TRITON_INTERPRET=1)")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for gpu-day.json and the tiles")
    options = parser.parse_args(arguments)
    if not options.toy and not torch.cuda.is_available():
        parser.error("no CUDA device is here; --toy runs the same code on the CPU")
    day = Day(options.toy, options.minutes)
    if options.toy:
        replay.BUCKETS = (64,)  # launches are slow there, idle ones too
    options.out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        for name, part in PARTS.items():
            day.found[name] = part(day)
            (options.out / "gpu-day.json").write_text(json.dumps(day.found, indent=1), encoding="utf-8")
    show(day)
    print(f"wrote {options.out / 'gpu-day.json'} and {write_table(day, options.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

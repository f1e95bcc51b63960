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
after every row, so a run that is cut off leaves a file; and every part runs in a process of its own, so that one that
fails, in whichever way, costs the others nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clone

if "--toy" in sys.argv:
    clone.interpret()

import torch
import triton
from gpu_pass import Pass
from gpu_tiles import Day, described, tiles, write_table

from scumble import LLM
from scumble.bench import workloads
from scumble.bench.shapes import RELEASE, random_model, random_prompt
from scumble.bench.timing import clock, figure
from scumble.engine import replay
from scumble.formats import Format
from scumble.ops.triton import selfcheck
from scumble.ops.triton.launch import architecture, made_for, tile_table
from scumble.ops.triton.ops import TritonOps

PUBLISHED = {  # ms a pass of 256 tokens, one stream
    "vLLM, H100, fp8, 16 fixed passes": "14.9 ms a pass, 1,008 tok/s",
    "vLLM, H100, Gemma 4 26B-A4B, one token at a time": "197 tok/s",
}
FORMATS = {"bf16": ("plain", "plain"), "fp8": ("fp8", "fp8"), "int4": ("int4", "fp8")}  # of experts, of the rest
PASSES = 16
SHARE = 0.6  # of the time that is left, for one part


def card(day: Day) -> dict[str, Any]:
    facts: dict[str, Any] = {"torch": torch.__version__, "triton": triton.__version__}
    if triton.__version__.rpartition(".")[0] not in made_for():
        facts["note"] = (
            f"tiles are for triton {', '.join(made_for())}: figures and checks are of another compiler's code"
        )
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
    """One table of what there is."""
    for name in PARTS:
        part = day.found.get(name, {"error": "there was no time left for it, or it has not run"})
        if isinstance(part, dict) and "error" in part:
            print(f"{name}: {part['error']}")
        elif name in ("self-check", "formats"):
            faults = {key: why for key, why in part.items() if why}
            print(f"{name}: " + ("all pass" if not faults else "; ".join(f"{k}: {v}" for k, v in faults.items())))
        elif name == "bandwidth":
            print("bandwidth, GB/s: " + ", ".join(f"{k} {v:,.0f}" for k, v in part.items()))
        elif name == "tiles":
            for operation, rows in part.items():
                print(f"{operation}: " + "; ".join(json.dumps(row) for row in rows[:2]))
        elif isinstance(part, list):
            for row in part:
                print("  ".join(f"{k} {v:,.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
            for line in ratios(part) if name == "passes" else ():
                print(line)
        else:
            print(json.dumps(part))
    for name, theirs in PUBLISHED.items():
        print(f"published, not measured here: {name}: {theirs}")


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
    "engine": engine,
    "passes": passes,
    "tiles": tiles,
}


def run(day: Day, name: str, folder: Path) -> None:
    """One part. What it has found is written row by row; an error is what it has found last."""
    try:
        with torch.no_grad():
            part = PARTS[name](day)
            if isinstance(part, Iterator):
                day.found[name] = []
                for row in part:
                    day.found[name].append(row)
                    day.save(folder)
            else:
                day.found[name] = part
    except Exception as error:  # of one part; the others go on
        rows = day.found.get(name)
        day.found[name] = [*rows, {"error": described(error)}] if rows else {"error": described(error)}
    day.save(folder)
    gc.collect()
    if day.device.type == "cuda":
        torch.cuda.empty_cache()


def run_apart(day: Day, name: str, folder: Path) -> None:
    """One part in a process of its own: after a fault of a kernel a process cannot use the card any more, and a kernel
    that never ends can only be ended with its process."""
    left = max(1.0, (day.end - time.monotonic()) * (1.0 if name == "tiles" else SHARE))
    command = [sys.executable, __file__, "--part", name, "--minutes", str(left / 60), "--out", str(folder)]
    try:
        done = subprocess.run([*command, *(["--toy"] if day.toy else [])], timeout=left + 30, check=False)
        fault = f"its process ended with {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired:
        fault = "it did not end in time"
    day.load(folder)
    if fault:
        rows = day.found.get(name)
        day.found[name] = [*rows, {"error": fault}] if isinstance(rows, list) else {"error": fault}
        day.save(folder)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="toy size, on the CPU, by Triton's interpreter")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for gpu-day.json and the tiles")
    parser.add_argument("--part", choices=PARTS, help="this one alone; what the file has of others stays")
    parser.add_argument("--apart", action="store_true", help="every part in a process of its own; always so on a card")
    options = parser.parse_args(arguments)
    if not options.toy and not torch.cuda.is_available():
        parser.error("no CUDA device is here; --toy runs the same code on the CPU")
    day = Day(options.toy, options.minutes)
    if options.toy:
        replay.BUCKETS = (64,)  # launches are slow there, idle ones too
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part is not None:
        day.load(options.out)
        run(day, options.part, options.out)
        return 0
    day.save(options.out)
    for name in PARTS:
        (run if options.toy and not options.apart else run_apart)(day, name, options.out)
    show(day)
    if isinstance(day.found.get("tiles"), dict):
        print(f"wrote {write_table(day, options.out)}")
    print(f"wrote {options.out / 'gpu-day.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

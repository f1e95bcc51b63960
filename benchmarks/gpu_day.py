"""The first minutes on a card: are the kernels right there, how fast is each, and how fast is a whole pass?

    python benchmarks/gpu_day.py                    # at most 8 minutes; prints one table, writes tiles-<card>.toml
    python benchmarks/gpu_day.py --toy              # the same code on the CPU at toy size, by Triton's interpreter

In this order, so that what matters most comes first if time runs out:

  compile      kernels of all that follows, on all cores
  self-check   every operation, and products in every number format, with the reason where one fails
  bandwidth    of reading and of copying
  engine       generations by the package itself, release's shape, random weights, fp8 and int4: passes replayed as CUDA
               graphs and operation by operation (the same tokens?), first draft, tokens a second, steps, memory
  passes       the kernels alone, without the engine (gpu_pass.py): fp8, int4, bfloat16; 1, 4 and 8 rows; context 1k and
               32k; single steps; each eager and as one graph (the same bits?)
  stages       parts of such a pass, and the bandwidth that each reaches
  tiles        every product over a few tile sizes

Figures of other engines stand beside ours as published; they were not measured here. What has been found is written
after every row, so a run that is cut off leaves a file, and Ctrl-C shows the table of what there is. Every part runs in
a process of its own, so that one that fails, in whichever way, costs the others nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import clone

if "--toy" in sys.argv:
    clone.interpret()

import torch
import triton
from gpu_pass import Pass
from gpu_tables import PASSES, show
from gpu_tiles import Day, Nowhere, described, tiles, write_table

from ops.triton import release
from scumble import LLM
from scumble.bench import workloads
from scumble.bench.shapes import random_model, random_prompt
from scumble.bench.timing import clock, figure
from scumble.engine import replay
from scumble.formats import Format
from scumble.ops.triton import selfcheck
from scumble.ops.triton.ahead import compile_ahead
from scumble.ops.triton.launch import TABLE, Launch, architecture, made_for, recorded, tile_table
from scumble.ops.triton.ops import OPERATIONS, TritonOps

FORMATS = {"fp8": ("fp8", "fp8"), "int4": ("int4", "fp8"), "bf16": ("plain", "plain")}  # of experts, of the rest
CONTEXTS = (1024, 32_768)
SHARE = 0.6  # of the time that is left, for one part
BUSY = 1.0  # seconds of work before the card is asked for its watts: it answers with a mean of about so long


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
    """GB/s of reading (the quicker of two reductions) and of copying (both ways counted). Just below 2 GiB: beyond that
    torch splits its kernels."""
    numbers = 2**16 if day.toy else 2**29 - 2**10
    block = torch.randint(1000, (numbers,), dtype=torch.int32, device=day.device)
    other = torch.empty_like(block)
    read = min(day.milliseconds(block.max), day.milliseconds(block.view(torch.float32).sum))
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
            day.free()


def generations(day: Day, form: Format) -> dict[str, Any]:
    """A fixed number of passes a canvas, one stream, replayed and eager in turns; then single steps."""
    now, passes = clock(day.device), 3 if day.toy else PASSES
    begin = now()
    if not day.toy:
        torch.cuda.reset_peak_memory_stats(day.device)
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
    for name, runs in (("", replayed), ("eager ", plain)):
        row[f"{name}ms a pass"] = 1e3 * figure([seconds for one in runs for seconds in one.between]).median
        row[f"{name}tok/s"] = max(one.valid / one.seconds for one in runs)
    row["same tokens"] = all(one.ids == plain[0].ids for one in replayed)
    row["first draft ms"] = 1e3 * (run(short).first_draft or 0.0)
    steps = workloads.run_steps(llm, short, 4 if day.toy else 48, 1, now)
    row["ms a step"] = 1e3 * figure(steps.steps).median
    row["x steps"] = row["tok/s"] * row["ms a step"] / 1e3
    if not day.toy:
        row["peak GB"] = torch.cuda.max_memory_allocated(day.device) / 1e9
    return row


def passes(day: Day) -> Iterator[dict[str, Any]]:
    """Whole passes and steps, by format, rows and context."""
    arch = architecture(day.device)
    contexts = (16,) if day.toy else CONTEXTS
    for name, (format, dense) in FORMATS.items():
        if f"up {format}" not in tile_table()[arch] or f"linear {dense}" not in tile_table()[arch]:
            yield {"format": name, "skipped": f"no tiles for sm_{arch}"}
            continue
        if not day.left(25 if not day.toy else 0):
            yield {"format": name, "skipped": "no time left"}
            continue
        cases = [(rows, day.config.canvas_length, contexts[0]) for rows in (1, 4, 8)]
        cases += [(rows, 1, contexts[0]) for rows in (1, 8)]
        cases += [(rows, day.config.canvas_length, context) for context in contexts[1:] for rows in (1, 4, 8)]
        try:
            model = Pass(day.config, format, dense, day.dtype, day.device)
        except Exception as error:  # no memory, for instance
            yield {"format": name, "error": described(error)}
            continue
        for rows, tokens, context in (cases[0], cases[4]) if day.toy else cases:
            if not day.left(10):
                yield {"format": name, "rows": rows, "tokens": tokens, "context": context, "skipped": "no time left"}
                continue
            yield {"format": name, **one_pass(day, model, rows, tokens, context)}
        del model
        day.free()


def one_pass(day: Day, model: Pass, rows: int, tokens: int, context: int) -> dict[str, Any]:
    """ms of a pass, eager and replayed, whether both give the same bits; of canvases how fast weights are read."""
    row: dict[str, Any] = {"rows": rows, "tokens": tokens, "context": context}
    try:
        model.prepare(rows, tokens, context)
        row["GB"] = model.nbytes / 1e9
        if not day.toy:
            torch.cuda.reset_peak_memory_stats(day.device)
        eager = model()
        row["eager ms"] = day.milliseconds(model, 5)
        row["finite"] = bool(torch.isfinite(eager[1]).all())
        replay, captured = day.graph(model)
        row["graph ms"] = day.milliseconds(replay)
        row["graph = eager"] = all(torch.equal(a, b) for a, b in zip(eager, captured, strict=True))
        per_pass = 1 if tokens == 1 else PASSES
        row["tok/s"] = 1e3 * rows * tokens / (row["graph ms"] * per_pass)
        if tokens > 1:
            row["GB/s"] = model.read / row["graph ms"] / 1e6
        if day.toy:
            return row
        row["peak GB"] = torch.cuda.max_memory_allocated(day.device) / 1e9
        if context == CONTEXTS[0] and tokens > 1 and rows != 4:
            row["watts"] = power(day, replay, row["graph ms"])
    except Exception as error:  # one case that fails must not end the day
        row["error"] = described(error)
    return row


def power(day: Day, replay: Callable[[], Any], milliseconds: float) -> float | None:
    """Watts of the card while it replays, by nvidia-smi; None where that cannot be asked."""
    card = f"GPU-{torch.cuda.get_device_properties(day.device).uuid}"
    command = ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits", "-i", card]
    for _ in range(int(1.5e3 * BUSY / milliseconds)):
        replay()
    last = torch.cuda.Event()
    last.record()
    try:
        time.sleep(BUSY)
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return None if last.query() else float(said)  # it was idle again by then
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    finally:
        torch.cuda.synchronize()


def stages(day: Day) -> Iterator[dict[str, Any]]:
    """Parts of a pass of one row, each captured for itself, and the GB/s of weights and caches that it reads."""
    arch = architecture(day.device)
    for name, (format, dense) in FORMATS.items():
        if f"up {format}" not in tile_table()[arch] or f"linear {dense}" not in tile_table()[arch]:
            continue  # `passes` says so
        if not day.left(15 if not day.toy else 0):
            yield {"format": name, "skipped": "no time left"}
            continue
        try:
            model = Pass(day.config, format, dense, day.dtype, day.device)
            model.prepare(1, day.config.canvas_length, 16 if day.toy else CONTEXTS[0])
            parts = model.stages()
        except Exception as error:  # no memory, for instance
            yield {"format": name, "error": described(error)}
            continue
        for part, (call, nbytes) in parts.items():
            row: dict[str, Any] = {"format": name, "stage": part}
            try:
                call()
                row["ms"] = day.milliseconds(day.graph(call)[0])
                row |= {"GB": nbytes / 1e9, "GB/s": nbytes / row["ms"] / 1e6}
            except Exception as error:
                row["error"] = described(error)
            yield row
        del model, parts
        call = None  # it refers to the weights
        day.free()


def check_operations(day: Day) -> Iterator[dict[str, Any]]:
    """What is wrong with each operation, one by one: a fault that ends the process leaves those before it."""
    for name in OPERATIONS:
        begin = time.monotonic()
        why = selfcheck.examine(day.device, day.dtype, day.config, [name]).get(name)
        yield {"operation": name, "fault": why, "s": time.monotonic() - begin}


def check_formats(day: Day) -> Iterator[dict[str, Any]]:
    """What is wrong with products in each format that this card has."""
    have = tile_table()[architecture(day.device)]
    for form in selfcheck.ROUNDING:
        if f"up {form}" in have:
            begin = time.monotonic()
            why = selfcheck.examine_format(day.device, day.dtype, day.config, form)
            yield {"format": form, "fault": why, "s": time.monotonic() - begin}


def compiled(day: Day) -> dict[str, Any]:
    """What the other parts launch, compiled by all cores: kernel by kernel, at its launch, it would take half of the
    time. Recorded on tensors without memory, at the shapes that follow."""
    if day.toy:
        return {"skipped": "the interpreter compiles nothing"}
    begin, major_minor = time.monotonic(), torch.cuda.get_device_capability(day.device)
    made = planned(day, architecture(day.device))
    count = compile_ahead(made, 10 * major_minor[0] + major_minor[1])
    return {"kernels": count, "seconds": round(time.monotonic() - begin, 1)}


def planned(day: Day, arch: int) -> list[Launch]:
    """Launches of checks, of the engine's passes and steps, of passes by the kernels alone, of other tiles."""
    have = tile_table()[arch]
    forms = [form for form in selfcheck.ROUNDING if f"up {form}" in have]
    made = selfcheck.launches([*OPERATIONS, *forms], arch, day.dtype, day.config)
    made += release.launches(arch, TABLE, day.dtype)
    nowhere = Nowhere(day)
    with torch.no_grad(), recorded(arch) as rest:
        for format, dense in FORMATS.values():
            if f"up {format}" in have and f"linear {dense}" in have:
                model = Pass(nowhere.config, format, dense, day.dtype, nowhere.device)
                for rows, tokens, context in product((1, 8), (day.config.canvas_length, 1), CONTEXTS):
                    model.prepare(rows, tokens, context)
                    model()
        list(tiles(nowhere))
    return made + rest


PARTS: dict[str, Callable[[Day], Any]] = {
    "card": card,
    "compile": compiled,
    "self-check": check_operations,
    "formats": check_formats,
    "bandwidth": bandwidth,
    "engine": engine,
    "passes": passes,
    "stages": stages,
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
    try:
        for name in PARTS:
            begin = time.monotonic()
            (run if options.toy and not options.apart else run_apart)(day, name, options.out)
            print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    except KeyboardInterrupt:  # the process of a part has ended by then
        day.load(options.out)
        print("stopped; what there is:", file=sys.stderr)
    show(day.found, list(PARTS))
    if isinstance(day.found.get("tiles"), list):
        print(f"wrote {write_table(day, options.out)}")
    print(f"wrote {options.out / 'gpu-day.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

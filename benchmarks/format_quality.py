"""What few bits cost in quality, on the embedded model: divergence from bfloat16, held-out loss, evaluation, passes.

    python benchmarks/format_quality.py                     # writes a Markdown table; --json for programs
    python benchmarks/format_quality.py --limit 20 --passes-of 10 --formats int4

Folders are made by `convert`, in a temporary place, and loaded as they are: what is measured is what such a folder does
on this machine (docs/formats.md says which formats run as what). Calibration texts are functions of the standard
library of the Python that runs this; what is measured are the functions held out from the model's training.

divergence: bfloat16 fills holes, and its canvases of every pass are shown to the other format, each model with soft
embeddings of its own making. KL(bfloat16 ‖ format) in nats, of the positions up to the answer's end, all passes: of the
model's own distribution, and at the temperature of the sampler, which sharpens it. How often the most probable id is
the same.
loss: `scumble eval --task loss`. evaluation: `scumble eval --task infill`, the diffusion decoder, the model's settings;
differences to bfloat16 are paired, case by case.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import sys
import sysconfig
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import clone  # noqa: F401
import torch
from torch import Tensor

from scumble import LLM
from scumble.checkpoint.convert import convert
from scumble.decode import PassDone
from scumble.evaluate.catalogue import make_task, some_functions
from scumble.evaluate.loss import held_out_loss
from scumble.evaluate.plan import Plan
from scumble.evaluate.records import Record
from scumble.evaluate.run import NOBODY, measure
from scumble.evaluate.summary import difference
from scumble.evaluate.tasks import Task
from scumble.evaluate.variants import Variant
from scumble.llm import embedded_path

BASE = "bfloat16"
FORMATS = {  # name: of convert, whether calibrated
    "int8": ("int8", False), "int8 calibrated": ("int8", True), "int4": ("int4", False),
    "int4 calibrated": ("int4", True), "fp8": ("fp8", False), "nvfp4": ("nvfp4", False),
}  # fmt: skip
PASSES = ("first", "2", "3–5", "later")
POSITIONS = ("0", "1–3", "4–7", "later")


@dataclass(frozen=True)
class Look:
    """A canvas as it went into a pass: ids [L], and the temperature of its logits."""

    canvas: Tensor
    temperature: float


@dataclass(frozen=True)
class Trajectory:
    """prompt ids, what every pass over the first canvas was shown, and how many positions the answer has."""

    prompt: tuple[int, ...]
    looks: list[Look]
    length: int


def calibration_texts(file: Path) -> None:
    """Functions of the standard library, in an order that does not change."""
    found = []
    for source in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = source.read_text(encoding="utf-8", errors="ignore")
        lines = text.split("\n")
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                own = "\n".join(lines[node.lineno - 1 : node.end_lineno]) + "\n"
                if 200 < len(own) < 1500:
                    found.append(own)
    random.Random(0).shuffle(found)
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in found), encoding="utf-8")


def trajectories(llm: LLM, task: Task, count: int) -> list[Trajectory]:
    out = []
    for seed, case in enumerate(task.cases[:count]):
        prompt = llm.fill_prompt(case.before, case.after)
        looks: list[Look] = []

        def note(done: PassDone, looks: list[Look] = looks) -> None:
            if done.canvas_index == 0:
                looks.append(Look(done.canvas_in.clone(), done.temperature))

        config = prompt.config.merged({"best_of": 1, "revisions": 0, "seed": seed, "max_new_tokens": 64})
        answer = llm.generate_ids(prompt.ids, config, trace=note)
        out.append(Trajectory(prompt.ids, looks, min(len(answer.token_ids), len(looks[0].canvas))))
    return out


def logits(llm: LLM, path: Trajectory) -> Iterator[Tensor]:
    """Of every pass, logits [length, V]."""
    model = llm.model
    cache, previous = model.new_cache(), None
    model.encode(torch.tensor(path.prompt), cache)
    for look in path.looks:
        found = model.denoise_logits(look.canvas, cache, previous)
        previous = found / look.temperature
        yield found[: path.length]


def kl(ours: Tensor, theirs: Tensor, temperature: float) -> Tensor:
    """logits [n, V] -> [n]"""
    first, second = ((one / temperature).log_softmax(-1) for one in (ours, theirs))
    return (first.exp() * (first - second)).sum(-1)


def divergence(base: LLM, other: LLM, paths: Sequence[Trajectory]) -> dict[str, Any]:
    """Means of [KL, KL at the sampler's temperature, share of equal most probable ids] of all, by pass, by position."""
    sums: dict[tuple[str, str], Tensor] = defaultdict(lambda: torch.zeros(4))
    for path in paths:
        for number, (ours, theirs) in enumerate(zip(logits(base, path), logits(other, path), strict=True)):
            heat = path.looks[number].temperature
            same = (ours.argmax(-1) == theirs.argmax(-1)).float()
            each = torch.stack((kl(ours, theirs, 1), kl(ours, theirs, heat), same, torch.ones(path.length)), 1)
            when = PASSES[0 if number == 0 else 1 if number == 1 else 2 if number < 5 else 3]
            for position in range(path.length):
                where = POSITIONS[0 if position == 0 else 1 if position < 4 else 2 if position < 8 else 3]
                for key in (("all", "all"), ("pass", when), ("position", where)):
                    sums[key] += each[position]
    means = {key: (sum_[:3] / sum_[3]).tolist() for key, sum_ in sums.items()}
    return {
        kind: {name: mean for (own, name), mean in means.items() if own == kind} for kind in ("all", "pass", "position")
    }


def answers(llm: LLM, task: Task, name: str) -> tuple[dict[str, Any], list[Record]]:
    report, records = measure(llm, task, [Variant(name, {"decoder": "diffusion"})], 0, NOBODY)
    return report["variants"][name], records


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def run(formats: Sequence[str], limit: int, passes_of: int, loss_of: int, tokens: int) -> dict[str, Any]:
    base = LLM.load(dtype=BASE)
    task = make_task("infill", Plan(limit=limit), base)
    functions = some_functions(Plan(limit=loss_of))
    paths = trajectories(base, task, passes_of)
    rows: dict[str, Any] = {}
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as place:
        texts = Path(place) / "texts.jsonl"
        calibration_texts(texts)
        for name in (BASE, *formats):
            folder = embedded_path()
            if name != BASE:
                form, calibrated = FORMATS[name]
                folder = Path(place) / name
                list(convert(embedded_path(), folder, form, calibrate=texts if calibrated else None, tokens=tokens))
            llm = base if name == BASE else LLM.load(folder)
            figures, own = answers(llm, task, name)
            records += own
            rows[name] = {
                "stored": folder_bytes(folder),
                "memory": llm.model.nbytes,
                "runs_as": llm.model.load_report.lines() if llm.model.load_report else [],
                "divergence": None if name == BASE else divergence(base, llm, paths),
                "loss": held_out_loss(llm, functions, 0),
                "evaluation": figures,
                "differences": {
                    metric: _gap(records, task, metric, name) for metric in ("exact", "edit") if name != BASE
                },
            }
            print(f"{name} is done", file=sys.stderr, flush=True)
    return {
        "formats": rows, "cases": len(task.cases), "trajectories": len(paths), "functions": len(functions),
        "passes": sum(len(path.looks) for path in paths), "calibration_tokens": tokens,
    }  # fmt: skip


def _gap(records: Sequence[Record], task: Task, metric: str, name: str) -> Any:
    return difference(records, next(one for one in task.metrics if one.name == metric), name, BASE)


def table(report: dict[str, Any]) -> str:
    lines = [
        "| | stored | KL to bfloat16, nats a token | at the sampler's temperature | same most probable id | denoising "
        "loss, first look / self-conditioned | edit similarity | to bfloat16, points | passes a case |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    base = report["formats"][BASE]["evaluation"]["passes"]["mean"]
    for name, row in report["formats"].items():
        means = ("–",) * 3
        if row["divergence"] is not None:
            plain, tempered, same = row["divergence"]["all"]["all"]
            means = (f"{plain:.4f}", f"{tempered:.3f}", f"{100 * same:.1f} %")
        losses = [row["loss"][kind]["nats_per_token"]["mean"] for kind in ("denoise", "denoise_self_conditioned")]
        gap, passes = row["differences"].get("edit"), row["evaluation"]["passes"]["mean"]
        cells = [
            name,
            f"{row['stored'] / 1e6:.1f} MB",
            *means,
            " / ".join(f"{loss:.3f}" for loss in losses),
            f"{100 * row['evaluation']['quality']['edit']['mean']:.1f}",
            "–" if gap is None else f"{100 * gap['mean']:+.1f} ({100 * gap['low']:+.1f} … {100 * gap['high']:+.1f})",
            f"{passes:.2f}" + ("" if name == BASE else f" ({100 * (passes / base - 1):+.1f} %)"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"| KL | {' | '.join(f'pass {one}' for one in PASSES)} | "
              f"{' | '.join(f'position {one}' for one in POSITIONS)} |", "|---" * 9 + "|"]  # fmt: skip
    for name, row in report["formats"].items():
        if row["divergence"] is not None:
            both = [(row["divergence"]["pass"], PASSES), (row["divergence"]["position"], POSITIONS)]
            cells = [f"{found[one][0]:.4f}" if one in found else "–" for found, names in both for one in names]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--formats", default=",".join(FORMATS), help=f"with commas between: {', '.join(FORMATS)}")
    parser.add_argument("--limit", type=int, default=0, help="cases of the evaluation; 0: all")
    parser.add_argument("--passes-of", type=int, default=60, help="cases whose passes are compared")
    parser.add_argument("--loss-of", type=int, default=100, help="functions for the loss")
    parser.add_argument("--calibration-tokens", type=int, default=32_768)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    formats = [name for name in options.formats.split(",") if name]
    if unknown := set(formats) - set(FORMATS):
        parser.error(f"--formats takes {', '.join(FORMATS)}; found {', '.join(sorted(unknown))}")
    report = run(formats, options.limit, options.passes_of, options.loss_of, options.calibration_tokens)
    print(json.dumps(report, ensure_ascii=False) if options.json else table(report))


if __name__ == "__main__":
    main()

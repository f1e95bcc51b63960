"""What a run remembers and leaves behind: what identifies it, its log, and the model it exports."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scumble.checkpoint import save_checkpoint
from scumble.model import Transformer
from scumble.train.atomic import atomic_file
from scumble.train.config import Data, ModelShape, Objective, Optimizer, Run, TrainConfig
from scumble.train.state import NO_INIT, SOME_INIT, Progress


@dataclass(frozen=True)
class Report:
    """One line about a step. Losses in nats a token; speed in document tokens a second; flops achieved a second."""

    step: int
    tokens: int
    epoch: int
    causal: float
    denoise: float
    rate: float
    tokens_per_second: float
    flops_per_second: float
    seconds: float
    validation_causal: float | None = None
    validation_denoise: float | None = None


DEFAULTS: dict[str, Any] = {
    f"{table}.{field.name}": field.default
    for table, kind in (
        ("model", ModelShape), ("data", Data), ("objective", Objective), ("optimizer", Optimizer), ("run", Run),
    )
    for field in dataclasses.fields(kind)
    if field.default is not dataclasses.MISSING and f"{table}.{field.name}" != "run.init"
}  # fmt: skip


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """What the run is, by "table.name": everything but paths and what may differ from machine to machine."""
    raw = dataclasses.asdict(config)
    for name in ("out", "steps", "save_every", "validate_every", "minutes", "threads", "init"):
        raw["run"].pop(name)
    for name in ("train", "validation", "tokenizer"):
        raw["data"].pop(name)
    return {f"{table}.{name}": value for table, own in raw.items() if own for name, value in own.items()}


def identity(config: TrainConfig) -> dict[str, Any]:
    """What must not change between two pieces of one run. Of the optimizer: which moments are stored."""
    same = {"run.init": SOME_INIT if config.run.init else NO_INIT, **settings_of(config)}
    return {
        name: value for name, value in same.items() if not name.startswith("optimizer.") or name == "optimizer.muon"
    }


def export(
    model: Transformer,
    config: TrainConfig,
    progress: Progress,
    validation: tuple[float, float],
    generation_config: dict[str, Any],
) -> Path:
    """Write `model/`: bfloat16 weights in the released format, the tokenizer, and what the run did."""
    folder = Path(config.run.out) / "model"
    save_checkpoint(in_bfloat16(model), folder, generation_config=generation_config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        source = Path(config.data.tokenizer) / name
        if source.exists():
            shutil.copyfile(source, folder / name)
    summary = {**vars(progress), "validation_causal": validation[0], "validation_denoise": validation[1]}
    (folder / "training.json").write_text(
        json.dumps({"progress": summary, "config": settings_of(config)}, indent=2) + "\n"
    )
    return folder


def in_bfloat16(model: Transformer) -> Transformer:
    """A copy of a model in training, of its weights as they are now."""
    state = {name: tensor.detach().to(torch.bfloat16, copy=True) for name, tensor in model.state_dict().items()}
    with torch.device("meta"):
        copy = Transformer(model.config)
    copy.load_state_dict(state, assign=True)
    return copy.eval().requires_grad_(False)


def log(out: Path, line: Report) -> None:
    with (out / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(dataclasses.asdict(line)) + "\n")


def cut_log(out: Path, step: int) -> None:
    """Leave what was logged up to the resumed step: a run that was killed had gone further than its last state."""
    if (out / "metrics.jsonl").exists():
        kept = [line for line in read_metrics(out) if line["step"] <= step]
        with atomic_file(out / "metrics.jsonl", "w") as stream:
            stream.writelines(json.dumps(line) + "\n" for line in kept)


def read_metrics(out: Path) -> Iterator[dict[str, Any]]:
    """Lines of `metrics.jsonl`; a line that a kill cut short is left out."""
    with (out / "metrics.jsonl").open(encoding="utf-8") as stream:
        for line in stream:
            try:
                figures = json.loads(line)
            except json.JSONDecodeError:
                continue
            yield figures

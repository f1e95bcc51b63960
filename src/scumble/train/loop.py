"""The training loop: batch, losses, step; now and then validate, save, report. Resumable at any saved step."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scumble.checkpoint import load_checkpoint, read_generation_config, save_checkpoint
from scumble.config import ModelConfig
from scumble.errors import DataError
from scumble.model import Transformer
from scumble.text import Tokenizer
from scumble.text.infill import MIDDLE, PREFIX, REPAIR, SUFFIX
from scumble.train.batches import PLAIN, Batch, Batches, Mix, Specials
from scumble.train.config import Data, ModelShape, Objective, Optimizer, Run, TrainConfig, check_fits
from scumble.train.corpus.atomic import atomic_file
from scumble.train.data import lengths, read_documents
from scumble.train.docstring import docstring_finder
from scumble.train.infill import infill_tokens
from scumble.train.init import new_model
from scumble.train.muon import Muon
from scumble.train.objective import Losses, losses
from scumble.train.ranks import Ranks, join_ranks
from scumble.train.state import NO_INIT, SOME_INIT, Progress, load_state, save_state

VALIDATION_BATCHES = 8


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


def train(config: TrainConfig, report: Callable[[Report], None]) -> Path:
    """Train until `run.steps` (or `run.minutes`), from the last saved state if there is one; returns the model folder.

    The folder `run.out` gets `state.safetensors` (to resume), `metrics.jsonl` and `model/` (a released-format
    checkpoint in bfloat16, with the tokenizer). A KeyboardInterrupt saves the state first. A loss, gradient or weight
    that is not finite raises DataError and saves nothing: the last good state stays.
    """
    run = config.run
    if run.threads:
        torch.set_num_threads(run.threads)
    device = _device()
    ranks = join_ranks(device)
    out = Path(run.out)
    _require_writable(out)
    tokenizer = _tokenizer(config.data.tokenizer)
    settings = read_generation_config(Path(run.init)) if run.init else {}
    model, specials = prepare_model(config, tokenizer)
    model.to(device).train().requires_grad_(True)
    optimizer = _optimizer(model, config)
    about = identity(config)
    progress = load_state(out, model, optimizer, about, DEFAULTS)
    training, validation = (
        _batches(config, source, tokenizer, specials, model.config, what)
        for source, what in ((config.data.train, "data.train"), (config.data.validation, "data.validation"))
    )
    if ranks.is_first:
        _cut_log(out, progress.step)
    deadline = time.perf_counter() + run.minutes * 60 if run.minutes else math.inf

    try:
        while progress.step < run.steps and time.perf_counter() < deadline:
            line = _step(model, optimizer, training, config, progress, ranks)
            if progress.step % run.validate_every == 0 or progress.step == run.steps:
                causal, denoise = validate(model, validation, config)
                line = dataclasses.replace(line, validation_causal=causal, validation_denoise=denoise)
            if not ranks.is_first:
                continue
            _log(out, line)
            report(line)
            if progress.step % run.save_every == 0:
                save_state(out, model, optimizer, progress, about)
    except DataError:  # not finite, or no room on the disk: what was saved before is the best there is
        raise
    except BaseException:  # Ctrl-C too: nothing done so far is lost
        if ranks.is_first:
            save_state(out, model, optimizer, progress, about)
        raise
    if not ranks.is_first:
        return out / "model"
    save_state(out, model, optimizer, progress, about)
    return export(model, config, progress, validate(model, validation, config), settings)


def _require_writable(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise DataError(f"run.out must be a folder, found a file at {out}; remove it or name another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise DataError(
            f"run.out: nothing can be written in {out}: {error.strerror}; make it writable or name another folder"
        ) from None


def _tokenizer(folder: str) -> Tokenizer:
    if not (Path(folder) / "tokenizer.json").is_file():
        raise DataError(
            f"data.tokenizer: no tokenizer.json in {folder}; make one with `scumble data build` and "
            "`scumble data tokenizer`, or name a folder that has one"
        )
    return Tokenizer.from_folder(folder)


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _step(
    model: Transformer, optimizer: torch.optim.Optimizer, batches: Batches, config: TrainConfig, progress: Progress,
    ranks: Ranks,
) -> Report:  # fmt: skip
    started = time.perf_counter()
    causal_only = progress.step < config.objective.causal_first * config.run.steps
    turn = progress.step * ranks.world + ranks.rank
    batch = batches.batch(turn, PLAIN if causal_only else task_mix(config))
    rate = learning_rate(progress.step, config)
    for group in optimizer.param_groups:
        group["lr"] = rate
    result = _losses(model, batch, config, (config.run.seed << 32) + turn, causal_only)
    result.total.backward()
    result = ranks.share(model, result)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip)
    for what, value in (("loss", result.causal + result.denoise), ("gradient's norm", float(norm))):
        if not math.isfinite(value):
            raise DataError(
                f"step {progress.step + 1}: the {what} must be finite, found {value}; the state saved before stays: "
                f"lower optimizer.rate (now {config.optimizer.rate}) and run the same command again"
            )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

    seconds = time.perf_counter() - started
    flops = step_flops(model, config, batch, causal_only) * ranks.world
    progress.step += 1
    progress.tokens += result.tokens
    progress.seconds += seconds
    progress.flops += flops
    return Report(
        progress.step, progress.tokens, batch.epoch, result.causal, result.denoise, rate,
        result.tokens / seconds, flops / seconds, progress.seconds,
    )  # fmt: skip


def task_mix(config: TrainConfig) -> Mix:
    own = config.objective
    return Mix(infill=own.infill_share, repair=own.repair_share, body=own.body_share, copies=own.copies)


def _losses(model: Transformer, batch: Batch, config: TrainConfig, seed: int, causal_only: bool = False) -> Losses:
    device = model.device
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.autocast(device.type, torch.bfloat16) if config.run.bfloat16 else nullcontext()
    ids, sizes = torch.from_numpy(batch.ids).to(device), torch.from_numpy(batch.lengths).to(device)
    with mixed:
        return losses(
            model, ids, sizes, batch.prompt, batch.canvas, config.objective, generator, causal_only, batch.copies
        )


@torch.no_grad()
def validate(model: Transformer, batches: Batches, config: TrainConfig) -> tuple[float, float]:
    """Mean causal and denoise loss over the same few held-out batches, with the same noise, every time."""
    model.eval()
    some = range(0, len(batches), max(1, len(batches) // VALIDATION_BATCHES))
    results = [_losses(model, batches.batch(step), config, step) for step in list(some)[:VALIDATION_BATCHES]]
    model.train()
    return sum(r.causal for r in results) / len(results), sum(r.denoise for r in results) / len(results)


def prepare_model(config: TrainConfig, tokenizer: Tokenizer) -> tuple[Transformer, Specials]:
    """The model to train, in float32: fresh from [model], or a checkpoint from run.init; and its special ids."""
    if config.model is None:
        model = load_checkpoint(config.run.init, torch.float32)
        eos, bos, pad = model.config.eos_token_ids, model.config.bos_token_id, model.config.pad_token_id
        if not eos or bos is None or pad is None:
            raise DataError(f"{config.run.init}: training needs eos, bos and pad ids in config.json")
        if tokenizer.vocab_size > model.config.vocab_size:
            raise DataError(
                f"{config.data.tokenizer}: tokenizer.json has {tokenizer.vocab_size} tokens, the model in "
                f"{config.run.init} only {model.config.vocab_size}; train with that model's own tokenizer"
            )
        check_fits(config, model.config.canvas_length, model.config.max_position_embeddings, config.run.init)
        return model, Specials(bos, eos[0], pad)
    ids = {name: tokenizer.token_id(f"<{name}>") for name in ("bos", "eos", "pad")}
    missing = [name for name, token in ids.items() if token is None]
    if missing:
        raise DataError(f"{config.data.tokenizer}: the tokenizer lacks <{missing[0]}>, which training needs")
    specials = Specials(**{name: int(token) for name, token in ids.items() if token is not None})
    shape = config.model.build(tokenizer.vocab_size, specials.eos, specials.bos, specials.pad)
    return new_model(shape, config.run.seed), specials


def _batches(
    config: TrainConfig, source: str, tokenizer: Tokenizer, specials: Specials, model: ModelConfig, what: str
) -> Batches:
    documents = read_documents(source, tokenizer, what)
    if len(documents.ids) and (largest := int(documents.ids.max())) >= model.vocab_size:
        raise DataError(
            f"{what}: {source}: holds the token id {largest}, the model has {model.vocab_size} tokens; "
            f"pack it again with the tokenizer in {config.data.tokenizer}"
        )
    infill = infill_tokens(tokenizer) if config.objective.infill_share else None
    if config.objective.infill_share and infill is None:
        raise DataError(
            f"{config.data.tokenizer}: lacks {PREFIX}, {SUFFIX} or {MIDDLE}; set objective.infill_share = 0"
        )
    if config.objective.repair_share and infill is not None and infill.repair is None:
        raise DataError(f"{config.data.tokenizer}: lacks {REPAIR}; set objective.repair_share = 0")
    return Batches(
        documents, lengths(documents), specials,
        tokens=config.run.tokens, length=config.data.length, canvas=model.canvas_length,
        shortest_canvas=config.objective.shortest_canvas, prompt_share=config.objective.prompt_share,
        seed=config.run.seed, infill=infill, docstring_end=docstring_finder(tokenizer),
    )  # fmt: skip


def _optimizer(model: Transformer, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, or Muon for the matrices inside the layers; norms and other vectors are not decayed."""
    own = config.optimizer
    betas = (own.beta1, own.beta2)
    vectors = {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0}
    embedding = model.embed_tokens.weight
    matrices = [p for p in model.parameters() if p.ndim > 1 and p is not embedding]
    if own.muon:
        return Muon(
            matrices, [{"params": [embedding]}, vectors], lr=own.rate, weight_decay=own.weight_decay, betas=betas
        )
    groups = [{"params": [embedding, *matrices], "weight_decay": own.weight_decay}, vectors]
    return torch.optim.AdamW(groups, lr=own.rate, betas=betas, fused=True)


def learning_rate(step: int, config: TrainConfig) -> float:
    own = config.optimizer
    if step < own.warmup:
        return own.rate * (step + 1) / own.warmup
    done = (step - own.warmup) / max(1, config.run.steps - own.warmup)
    return own.rate * (own.final + (1 - own.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def step_flops(model: Transformer, config: TrainConfig, batch: Batch, causal_only: bool) -> float:
    """Arithmetic of a batch: 6 per active weight and token for encode and for denoise, 2 for a self-conditioning pass.

    Attention's products of queries and keys are left out; rows are short.
    """
    shape = model.config
    head = shape.vocab_size * shape.hidden_size
    expert = 3 * shape.hidden_size * shape.moe_intermediate_size * len(shape.layers)
    body = sum(p.numel() for p in model.parameters()) - head - expert * (shape.num_experts - shape.top_k_experts)
    encoded = batch.ids.shape[0] * int(batch.lengths.max())
    if causal_only:
        return 6.0 * (body + head) * encoded
    canvases = (batch.ids.shape[1] - batch.prompt) // batch.canvas
    if config.objective.canvases:
        canvases = min(canvases, config.objective.canvases)
    denoised = batch.ids.shape[0] * canvases * batch.canvas * batch.copies
    share = config.objective.self_conditioning
    return 6.0 * (body + head) * encoded + ((6 + 2 * share) * body + (6 + 4 * share) * head) * denoised


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
    model: Transformer, config: TrainConfig, progress: Progress, validation: tuple[float, float],
    generation_config: dict[str, Any],
) -> Path:  # fmt: skip
    """Write `model/`: bfloat16 weights in the released format, the tokenizer, and what the run did."""
    folder = Path(config.run.out) / "model"
    state = {name: tensor.detach().to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    with torch.device("meta"):
        half = Transformer(model.config)
    half.load_state_dict(state, assign=True)
    save_checkpoint(half, folder, generation_config=generation_config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        source = Path(config.data.tokenizer) / name
        if source.exists():
            shutil.copyfile(source, folder / name)
    summary = {**vars(progress), "validation_causal": validation[0], "validation_denoise": validation[1]}
    (folder / "training.json").write_text(
        json.dumps({"progress": summary, "config": settings_of(config)}, indent=2) + "\n"
    )
    return folder


def _log(out: Path, line: Report) -> None:
    with (out / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(dataclasses.asdict(line)) + "\n")


def _cut_log(out: Path, step: int) -> None:
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

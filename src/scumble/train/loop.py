"""The training loop: batch, losses, step; now and then validate, save, report. Resumable at any saved step."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from scumble.checkpoint import read_generation_config
from scumble.errors import DataError
from scumble.model import Transformer
from scumble.ops.training import TrainingOps
from scumble.train.batches import PLAIN, Batch, Batches, Mix
from scumble.train.config import TrainConfig
from scumble.train.lock import locked
from scumble.train.objective import Losses, losses
from scumble.train.precision import precision
from scumble.train.ranks import Ranks, join_ranks
from scumble.train.record import DEFAULTS, Report, cut_log, export, identity, log
from scumble.train.setup import make_batches, make_optimizer, open_tokenizer, prepare_model, require_writable
from scumble.train.signals import between_steps
from scumble.train.state import Progress, load_state, save_state

VALIDATION_BATCHES = 8


def train(config: TrainConfig, report: Callable[[Report], None]) -> Path:
    """Train until `run.steps` (or `run.minutes`), from the last saved state if there is one; returns the model folder.

    The folder `run.out` gets `state.safetensors` (to resume), `metrics.jsonl` and `model/` (a released-format
    checkpoint in bfloat16, with the tokenizer). Ctrl-C and SIGTERM end the step in progress, save the state and raise
    KeyboardInterrupt (`Interrupted`); a second Ctrl-C does not wait, and saves nothing. A loss, gradient or weight that
    is not finite raises DataError and saves nothing: the last good state stays. So does a folder in which another run
    is at work.
    """
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    device = _device()
    ranks = join_ranks(device)
    out = Path(config.run.out)
    require_writable(out)
    with locked(out) if ranks.is_first else nullcontext():
        return _train(config, report, device, ranks)


def _train(config: TrainConfig, report: Callable[[Report], None], device: torch.device, ranks: Ranks) -> Path:
    run, out = config.run, Path(config.run.out)
    tokenizer = open_tokenizer(config.data.tokenizer)
    settings = read_generation_config(Path(run.init)) if run.init else {}
    model, specials = prepare_model(config, tokenizer)
    model.to(device).train().requires_grad_(True)
    optimizer = make_optimizer(model, config, ranks)
    about = identity(config)
    progress = load_state(out, model, optimizer, about, DEFAULTS)
    training, validation = (
        make_batches(config, source, tokenizer, specials, model.config, what)
        for source, what in ((config.data.train, "data.train"), (config.data.validation, "data.validation"))
    )
    if ranks.is_first:
        cut_log(out, progress.step)
    deadline = time.perf_counter() + run.minutes * 60 if run.minutes else math.inf

    is_whole = True  # False while a step changes weight after weight: what is there then is no state to go on from
    try:
        with between_steps() as end_if_asked:
            while progress.step < run.steps and time.perf_counter() < deadline:
                is_whole = False
                line = _step(model, optimizer, training, config, progress, ranks)
                is_whole = True
                if progress.step % run.validate_every == 0 or progress.step == run.steps:
                    causal, denoise = validate(model, validation, config)
                    line = replace(line, validation_causal=causal, validation_denoise=denoise)
                if ranks.is_first:
                    log(out, line)
                    report(line)
                    if progress.step % run.save_every == 0:
                        save_state(out, model, optimizer, progress, about)
                end_if_asked()
    except DataError:  # not finite, or no room on the disk: what was saved before is the best there is
        raise
    except BaseException:  # Ctrl-C too: nothing done so far is lost
        if ranks.is_first and is_whole:
            save_state(out, model, optimizer, progress, about)
        raise
    if not ranks.is_first:
        return out / "model"
    save_state(out, model, optimizer, progress, about)
    return export(model, config, progress, validate(model, validation, config), settings)


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _step(
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    config: TrainConfig,
    progress: Progress,
    ranks: Ranks,
) -> Report:
    started = time.perf_counter()
    turn = progress.step * ranks.world + ranks.rank
    own = config.objective
    plain = progress.step < own.causal_first * config.run.steps
    # What a step is of, all ranks agree on: they have the same gradients to share and wait little for each other.
    causal_only = plain or _draw(config, progress.step) < own.causal_share
    batch = batches.batch(turn, PLAIN if plain else task_mix(config))
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


def _draw(config: TrainConfig, step: int) -> float:
    """A number in 0 … 1 that depends on the run's seed and the step alone."""
    return float(np.random.default_rng((config.run.seed, step, 2)).random())


def task_mix(config: TrainConfig) -> Mix:
    own = config.objective
    return Mix(infill=own.infill_share, repair=own.repair_share, body=own.body_share, copies=own.copies)


def _losses(
    model: Transformer,
    batch: Batch,
    config: TrainConfig,
    seed: int,
    causal_only: bool = False,
    ops: TrainingOps | None = None,
) -> Losses:
    device = model.device
    generator = torch.Generator().manual_seed(seed)
    ids, sizes = torch.from_numpy(batch.ids).to(device), torch.from_numpy(batch.lengths).to(device)
    drafts = None if batch.drafts is None else torch.from_numpy(batch.drafts).to(device)
    with precision(model, config.run.bfloat16, ops):
        return losses(
            model,
            ids,
            sizes,
            batch.prompt,
            batch.canvas,
            config.objective,
            generator,
            causal_only,
            batch.copies,
            drafts,
        )


@torch.no_grad()
def validate(model: Transformer, batches: Batches, config: TrainConfig) -> tuple[float, float]:
    """Mean causal and denoise loss over the same few held-out batches, with the same noise, every time."""
    model.eval()
    some = range(0, len(batches), max(1, len(batches) // VALIDATION_BATCHES))
    results = [_losses(model, batches.batch(step), config, step) for step in list(some)[:VALIDATION_BATCHES]]
    model.train()
    return sum(r.causal for r in results) / len(results), sum(r.denoise for r in results) / len(results)


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

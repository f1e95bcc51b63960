"""Reads the TOML file of a training run into train/config.py's tables, and refuses what cannot be."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from scumble.config import LARGEST, MOST_LAYERS
from scumble.errors import DataError, shown
from scumble.reading import check_depth, read_text, too_deep
from scumble.train.config import Data, ModelShape, Objective, Optimizer, Run, TrainConfig

T = TypeVar("T")
MOST_TOML = 2**20  # bytes


def read_train_config(path: Path) -> TrainConfig:
    """Read and check a TOML file; paths in it are relative to the file's folder. Raises DataError."""
    try:
        raw = tomllib.loads(read_text(path, MOST_TOML))
        check_depth(raw)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give a training configuration in TOML") from None
    except RecursionError:
        raise DataError(f"{path}: cannot be read as TOML: {too_deep()}") from None
    except (OSError, ValueError) as error:  # not UTF-8, not TOML, or a whole number of thousands of digits
        raise DataError(f"{path}: cannot be read as TOML: {error}") from None
    known = {"model", "data", "objective", "optimizer", "run"}
    if unknown := set(raw) - known:
        raise DataError(f"{path}: unknown table {shown(sorted(unknown)[0])}; known: {', '.join(sorted(known))}")
    config = TrainConfig(
        model=_table(ModelShape, raw["model"], path, "model") if "model" in raw else None,
        data=_table(Data, raw.get("data", {}), path, "data"),
        objective=_table(Objective, raw.get("objective", {}), path, "objective"),
        optimizer=_table(Optimizer, raw.get("optimizer", {}), path, "optimizer"),
        run=_table(Run, raw.get("run", {}), path, "run"),
    )
    if (config.model is None) == (config.run.init == ""):
        raise DataError(
            f"{path}: give either a [model] table (a new model) or run.init (a checkpoint folder), not both"
        )
    _check(config, path)
    base = path.parent
    data = dataclasses.replace(
        config.data,
        train=str(base / config.data.train),
        validation=str(base / config.data.validation),
        tokenizer=str(base / config.data.tokenizer),
    )
    init = str(base / config.run.init) if config.run.init else ""
    return dataclasses.replace(
        config, data=data, run=dataclasses.replace(config.run, out=str(base / config.run.out), init=init)
    )


def _table(kind: type[T], raw: Any, path: Path, name: str) -> T:
    """A dataclass from one TOML table, every value of the declared type."""
    if not isinstance(raw, dict):
        raise DataError(f"{path}: [{name}] must be a table, found {type(raw).__name__}")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key, value in raw.items():
        if key not in fields:
            raise DataError(f"{path}: [{name}] has no {shown(key)}; known: {', '.join(fields)}")
        expected = str(fields[key].type)
        accepted = {"int": int, "float": (int, float), "str": str, "bool": bool}[expected]
        if not isinstance(value, accepted) or (isinstance(value, bool) and expected != "bool"):
            raise DataError(f"{path}: {name}.{key} must be a {expected}, found {shown(value)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise DataError(f"{path}: {name}.{key} must be finite, found {shown(value)}")
    missing = [
        key for key, field in fields.items()
        if key not in raw and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]  # fmt: skip
    if missing:
        raise DataError(f"{path}: [{name}] lacks {', '.join(missing)}")
    return kind(**raw)


def _check(config: TrainConfig, path: Path) -> None:
    ranges: list[tuple[str, float, float, float]] = [
        ("data.length", config.data.length, 8, 2**20),
        ("objective.causal_first", config.objective.causal_first, 0, 1),
        ("objective.causal_share", config.objective.causal_share, 0, 1),
        ("objective.canvases", config.objective.canvases, 0, 2**20),
        ("objective.shortest_canvas", config.objective.shortest_canvas, 0, 2**20),
        ("objective.noise_power", config.objective.noise_power, 0.01, 100),
        ("objective.span_share", config.objective.span_share, 0, 1),
        ("objective.infill_share", config.objective.infill_share, 0, 1),
        ("objective.repair_share", config.objective.repair_share, 0, 1),
        ("objective.draft_share", config.objective.draft_share, 0, 1),
        ("objective.body_share", config.objective.body_share, 0, 1),
        ("objective.copies", config.objective.copies, 1, 64),
        ("objective.pad_weight", config.objective.pad_weight, 0, 1),
        ("objective.prompt_share", config.objective.prompt_share, 0, 1),
        ("objective.causal_weight", config.objective.causal_weight, 0, 1000),
        ("objective.self_conditioning", config.objective.self_conditioning, 0, 1),
        ("objective.t_min", config.objective.t_min, 0.0001, 1000),
        ("objective.t_max", config.objective.t_max, config.objective.t_min, 1000),
        ("objective.balance_weight", config.objective.balance_weight, 0, 1000),
        ("optimizer.rate", config.optimizer.rate, 1e-9, 10),
        ("optimizer.final", config.optimizer.final, 0, 1),
        ("optimizer.warmup", config.optimizer.warmup, 0, 10**7),
        ("optimizer.weight_decay", config.optimizer.weight_decay, 0, 10),
        ("optimizer.beta1", config.optimizer.beta1, 0, 0.999999),
        ("optimizer.beta2", config.optimizer.beta2, 0, 0.999999),
        ("optimizer.clip", config.optimizer.clip, 1e-6, 1e6),
        ("run.steps", config.run.steps, 1, 10**8),
        ("run.tokens", config.run.tokens, 8, 10**8),
        ("run.seed", config.run.seed, 0, 2**31 - 1),
        ("run.save_every", config.run.save_every, 1, 10**8),
        ("run.validate_every", config.run.validate_every, 1, 10**8),
        ("run.minutes", config.run.minutes, 0, 10**6),
        ("run.threads", config.run.threads, 0, 1024),
    ]
    if config.model is not None:
        ranges += _model_ranges(config.model)
    for name, value, low, high in ranges:
        if not low <= value <= high:
            raise DataError(f"{path}: {name} must lie in {low} … {high}, found {shown(value)}")
    if config.objective.repair_share and not config.objective.infill_share:
        raise DataError(
            f"{path}: objective.repair_share ({config.objective.repair_share}) is a share of the infill batches and "
            f"needs objective.infill_share above 0, found {config.objective.infill_share}"
        )
    if config.objective.draft_share and not config.objective.repair_share:
        raise DataError(
            f"{path}: objective.draft_share ({config.objective.draft_share}) is a share of the repair rows' canvases "
            f"and needs objective.repair_share above 0, found {config.objective.repair_share}"
        )
    if config.model is not None:
        _check_heads(config.model, path)
        check_fits(config, config.model.canvas_length, config.model.context, str(path))


def _model_ranges(model: ModelShape) -> list[tuple[str, float, float, float]]:
    """What loading a checkpoint allows, under the names of [model]."""
    return [
        ("model.hidden_size", model.hidden_size, 1, LARGEST["hidden_size"]),
        ("model.layers", model.layers, 1, MOST_LAYERS),
        ("model.heads", model.heads, 1, LARGEST["num_attention_heads"]),
        ("model.head_dim", model.head_dim, 2, 2**13),
        ("model.kv_heads", model.kv_heads, 1, model.heads),
        ("model.full_head_dim", model.full_head_dim, 2, 2**13),
        ("model.full_kv_heads", model.full_kv_heads, 1, model.heads),
        ("model.mlp", model.mlp, 1, LARGEST["intermediate_size"]),
        ("model.experts", model.experts, 1, LARGEST["num_experts"]),
        ("model.experts_per_token", model.experts_per_token, 1, model.experts),
        ("model.expert_mlp", model.expert_mlp, 1, LARGEST["moe_intermediate_size"]),
        ("model.sliding_window", model.sliding_window, 1, LARGEST["sliding_window"]),
        ("model.context", model.context, 1, LARGEST["max_position_embeddings"]),
        ("model.canvas_length", model.canvas_length, 1, LARGEST["canvas_length"]),
        ("model.sliding_per_full", model.sliding_per_full, 0, MOST_LAYERS),
        ("model.full_rope_theta", model.full_rope_theta, 1e-6, 1e38),
        ("model.full_rope_fraction", model.full_rope_fraction, 0, 1),
    ]


def _check_heads(model: ModelShape, path: Path) -> None:
    for name in ("head_dim", "full_head_dim"):
        if getattr(model, name) % 2:
            raise DataError(f"{path}: model.{name} must be even, found {getattr(model, name)}")
    for name in ("kv_heads", "full_kv_heads"):
        if model.heads % getattr(model, name):
            raise DataError(
                f"{path}: model.{name} must divide model.heads ({model.heads}), found {getattr(model, name)}"
            )


def check_fits(config: TrainConfig, canvas_length: int, context: int, where: str) -> None:
    """Raise DataError where rows or canvases are longer than what a model has; `where` names the model."""
    if canvas_length > context:
        raise DataError(
            f"{where}: canvas_length must be at most the model's context ({context}), found {canvas_length}"
        )
    if config.data.length > context:
        raise DataError(
            f"{where}: data.length must be at most the model's context ({context}), found {config.data.length}"
        )
    if config.objective.shortest_canvas > canvas_length:
        raise DataError(
            f"{where}: objective.shortest_canvas must be at most the model's canvas_length ({canvas_length}), "
            f"found {config.objective.shortest_canvas}"
        )

"""The file that `scumble train` reads: TOML with the tables [model], [data], [objective], [optimizer] and [run]."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from scumble.config import LARGEST, MOST_LAYERS, LayerConfig, ModelConfig, Rope
from scumble.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True)
class ModelShape:
    """A new model's sizes. Layers repeat `sliding_per_full` sliding layers and one full; the last is always full."""

    hidden_size: int
    layers: int
    heads: int
    head_dim: int
    kv_heads: int
    full_head_dim: int
    full_kv_heads: int
    mlp: int
    experts: int
    experts_per_token: int
    expert_mlp: int
    sliding_window: int
    context: int
    canvas_length: int
    sliding_per_full: int = 5
    full_rope_theta: float = 1e6
    full_rope_fraction: float = 0.25

    def build(self, vocab_size: int, eos_id: int, bos_id: int | None, pad_id: int) -> ModelConfig:
        kinds = ["full" if (i + 1) % (self.sliding_per_full + 1) == 0 else "sliding" for i in range(self.layers)]
        kinds[-1] = "full"
        sliding = LayerConfig("sliding_attention", self.head_dim, self.kv_heads)
        full = LayerConfig("full_attention", self.full_head_dim, self.full_kv_heads)
        return ModelConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.mlp,
            num_attention_heads=self.heads,
            num_experts=self.experts,
            top_k_experts=self.experts_per_token,
            moe_intermediate_size=self.expert_mlp,
            layers=tuple(full if kind == "full" else sliding for kind in kinds),
            full_rope=Rope("proportional", self.full_rope_theta, self.full_rope_fraction),
            sliding_window=self.sliding_window,
            max_position_embeddings=self.context,
            canvas_length=self.canvas_length,
            eos_token_ids=(eos_id,),
            bos_token_id=bos_id,
            pad_token_id=pad_id,
            image_token_id=None,
            source={"vision_config": _PLACEHOLDER_VISION},
        )


# The format wants a vision tower. A text-only model declares the smallest one, so that software that builds the
# declared tower (transformers does) builds almost nothing.
_PLACEHOLDER_VISION = {
    "model_type": "gemma4_vision", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "global_head_dim": 8, "patch_size": 4,
    "position_embedding_size": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Data:
    """train, validation: JSON Lines with a "text" each, a text file or folder of them, or packed tokens (`*.bin`).

    tokenizer: folder with tokenizer.json. length: tokens of a training row at most; longer documents are cut.
    """

    train: str
    validation: str
    tokenizer: str
    length: int = 256


@dataclass(frozen=True)
class Objective:
    """causal_first: share of the steps, at the start, that train the next-token loss alone (half the arithmetic a
        token); the canvas then starts from weights that know the language. causal_share: share of the later batches
        that do so too, with the tasks below.
    canvases: how many canvases of a row are trained at once; 0: all (the released recipe trains 1).
    shortest_canvas: batches draw their canvas length from the model's, half of it, a quarter … down to this, so that
        short canvases are at home too; 0: always the model's.

    noise_power: noise levels are uᵖᵒʷᵉʳ, u uniform in 0 … 1; above 1 trains more on nearly finished canvases.
    span_share: share of the canvases in which the noise is one span, all of it noise, and the rest is right: what a
        canvas with pinned positions looks like, and one that is being written from its start.
    infill_share: share of the batches, after causal_first, that are fill-in-the-middle rows (see train/infill.py).
    repair_share: share of those batches, where the holes are whole lines, that show the damaged lines.
    draft_share: share of the canvases of repair rows that hold the damaged lines, every other one with noise, where
        others hold the right ones with noise: what `LLM.repair` starts from.
    body_share: share of the other batches whose canvases begin where a docstring ends.
    copies: noised copies of an infill row's canvases that train on one encoding, at most.
    pad_weight: weight of canvas positions behind a document's end (the recipe's is 1).
    distill_share: share of the batches with a canvas loss whose answers are what the model of run.init writes behind
        the prompts, autoregressively and greedily (see train/distill.py); they train the canvas alone.
    trajectory_share: share of those, and of repair rows, where self-conditioned, whose second pass looks at the
        canvases as the sampler, with an entropy bound of trajectory_bound (changes alone), would leave them after the
        first.
    t_min, t_max: temperatures of that first pass, at noise levels 0 and 1: the sampler's, as it will be used.
    prompt_share: the prompt is 1 … that share of a row's document, uniformly. causal_weight: of the next-token loss.
    """

    causal_first: float = 0.0
    causal_share: float = 0.0
    canvases: int = 0
    shortest_canvas: int = 0
    noise_power: float = 1.0
    span_share: float = 0.0
    infill_share: float = 0.0
    repair_share: float = 0.0
    draft_share: float = 0.0
    body_share: float = 0.0
    copies: int = 1
    pad_weight: float = 1.0
    prompt_share: float = 0.7
    causal_weight: float = 1.0
    self_conditioning: float = 0.5
    distill_share: float = 0.0
    trajectory_share: float = 0.0
    trajectory_bound: float = 1.0
    t_min: float = 0.4
    t_max: float = 0.8
    balance_weight: float = 0.01


@dataclass(frozen=True)
class Optimizer:
    """AdamW; with `muon`, for vectors and the embedding only (see train/muon.py). The rate rises linearly for `warmup`
    steps, then falls by a half cosine to `final` of its peak. All but `muon` may be changed between pieces."""

    rate: float = 2e-3
    final: float = 0.05
    warmup: int = 100
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    muon: bool = False


@dataclass(frozen=True)
class Run:
    """steps: optimizer steps in all; may be changed between pieces, the learning rate then follows the new plan.
    tokens: document tokens a step, about. threads: 0 leaves torch's choice.
    minutes: stop this piece after that long, to be resumed; 0: no limit. init: a checkpoint folder to start from.
    grow: how many copies of init's last block of layers to put in, silent at first (see train/grow.py).
    """

    out: str
    steps: int
    tokens: int = 4096
    seed: int = 0
    save_every: int = 200
    validate_every: int = 200
    minutes: float = 0.0
    bfloat16: bool = True
    threads: int = 0
    init: str = ""
    grow: int = 0


@dataclass(frozen=True)
class TrainConfig:
    model: ModelShape | None
    data: Data
    objective: Objective
    optimizer: Optimizer
    run: Run


def read_train_config(path: Path) -> TrainConfig:
    """Read and check a TOML file; paths in it are relative to the file's folder. Raises DataError."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give a training configuration in TOML") from None
    except (OSError, ValueError) as error:  # not UTF-8, not TOML, or a whole number of thousands of digits
        raise DataError(f"{path}: cannot be read as TOML: {error}") from None
    known = {"model", "data", "objective", "optimizer", "run"}
    if unknown := set(raw) - known:
        raise DataError(f"{path}: unknown table {sorted(unknown)[0]!r}; known: {', '.join(sorted(known))}")
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
            raise DataError(f"{path}: [{name}] has no {key!r}; known: {', '.join(fields)}")
        expected = str(fields[key].type)
        accepted = {"int": int, "float": (int, float), "str": str, "bool": bool}[expected]
        if not isinstance(value, accepted) or (isinstance(value, bool) and expected != "bool"):
            raise DataError(f"{path}: {name}.{key} must be a {expected}, found {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise DataError(f"{path}: {name}.{key} must be finite, found {value!r}")
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
        ("objective.distill_share", config.objective.distill_share, 0, 1),
        ("objective.trajectory_share", config.objective.trajectory_share, 0, 1),
        ("objective.trajectory_bound", config.objective.trajectory_bound, 1e-6, 1e9),
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
        ("run.grow", config.run.grow, 0, 64),
    ]
    if config.model is not None:
        ranges += _model_ranges(config.model)
    for name, value, low, high in ranges:
        if not low <= value <= high:
            raise DataError(f"{path}: {name} must lie in {low} … {high}, found {value!r}")
    if config.objective.repair_share and not config.objective.infill_share:
        raise DataError(
            f"{path}: objective.repair_share ({config.objective.repair_share}) is a share of the infill batches and "
            f"needs objective.infill_share above 0, found {config.objective.infill_share}"
        )
    if config.run.grow and not config.run.init:
        raise DataError(
            f"{path}: run.grow ({config.run.grow}) deepens a checkpoint; give its folder as run.init, or set "
            "model.layers for a new model"
        )
    if config.objective.distill_share and not config.run.init:
        raise DataError(
            f"{path}: objective.distill_share ({config.objective.distill_share}) needs a teacher; give the checkpoint "
            "folder to start from as run.init"
        )
    if config.objective.draft_share and not config.objective.repair_share:
        raise DataError(
            f"{path}: objective.draft_share ({config.objective.draft_share}) is a share of the repair rows' canvases "
            f"and needs objective.repair_share above 0, found {config.objective.repair_share}"
        )
    if config.objective.trajectory_share and not (config.objective.distill_share or config.objective.repair_share):
        raise DataError(
            f"{path}: objective.trajectory_share ({config.objective.trajectory_share}) is a share of the distilled and "
            "the repair batches; set objective.distill_share or objective.repair_share above 0"
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

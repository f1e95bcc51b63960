"""What `scumble train` is told: the tables [model], [data], [objective], [optimizer] and [run] of a TOML file (read in
train/read_config.py)."""

from __future__ import annotations

from dataclasses import dataclass

from scumble.config import LayerConfig, ModelConfig, Rope


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
    self_conditioning: probability of a first pass without gradient that supplies the soft embedding.
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


@dataclass(frozen=True)
class TrainConfig:
    model: ModelShape | None
    data: Data
    objective: Objective
    optimizer: Optimizer
    run: Run

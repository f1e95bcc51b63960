"""The judge of the parity tests: `transformers`' own DiffusionGemma, made small, random and repeatable.

Three things live here:

- `Shape`, `random_shape` and `build_oracle` make tiny checkpoints whose every weight is random but seeded, with nothing
  left at a value that would hide a mistake: norms are not 1, layer scalars differ between encode and denoise, experts
  have scales, logits are spread out.
- `Oracle.save` writes such a checkpoint in each way in which one may be met in the wild: `config.json` in the spelling
  of `transformers` or of the release, one file or shards, with and without vision tower, with and without the
  encoder's copies of tied weights.
- `Oracle.generate` runs `transformers`' own `generate`, unchanged except that its random numbers come from a noise
  object that the engine under test is given too, and records every pass (`PassRecord`).

Two correct programs may still disagree where a float32 rounding decides: a uniform number on the border of two tokens,
two tokens with practically equal logits, a cumulated entropy at the bound. `PassRecord.margin` says how large an error
in the logits a pass withstands before any of its decisions could turn, and `decisive_run` searches the noise seeds for
a run in which every pass withstands `BORDER`. On such a run every id has to be equal; no test tolerates a wrong id.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import json
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import safetensors
import safetensors.torch
import torch
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, DynamicCache
from transformers.models.diffusion_gemma import generation_diffusion_gemma as hf_generation
from transformers.models.diffusion_gemma.configuration_diffusion_gemma import DiffusionGemmaTextConfig
from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig
from transformers.utils import logging as hf_logging

hf_logging.set_verbosity_error()
hf_logging.disable_progress_bar()

ENCODER_TEXT = "model.encoder.language_model."
DECODER = "model.decoder."
VISION = ("model.encoder.vision_tower.", "model.encoder.embed_vision.")

BORDER = 1e-4
"""Logit error below which a decisive run decides alike. In one pass, the logits of two correct float32 implementations
of these tiny models differ by 3e-5 at most, and self-conditioning carries errors on from pass to pass; over a whole
generation they stay below this value (`test_oracle.py` measures both on `transformers`' own kernels)."""


# --------------------------------------------------------------------------------------------------------------------
# Noise


class Noise(Protocol):
    """Where random numbers come from: each is a function of its address, so two programs can share them."""

    def initial(self, canvas_index: int, length: int, vocab: int) -> torch.Tensor:
        """The ids a canvas starts with: int64 [length], in 0 … vocab-1."""
        ...

    def uniform(self, canvas_index: int, pass_index: int, length: int) -> torch.Tensor:
        """The numbers that pick proposals by inverse CDF: float64 [length], in [0, 1)."""
        ...

    def renoise(self, canvas_index: int, pass_index: int, length: int, vocab: int) -> torch.Tensor:
        """The ids for positions that were not accepted: int64 [length], in 0 … vocab-1."""
        ...


@dataclass(frozen=True)
class RecordedNoise:
    """Noise from numpy's default generator, one fresh generator per address, so that order of use does not matter."""

    seed: int

    def initial(self, canvas_index: int, length: int, vocab: int) -> torch.Tensor:
        return torch.from_numpy(self._at(0, canvas_index).integers(0, vocab, length))

    def uniform(self, canvas_index: int, pass_index: int, length: int) -> torch.Tensor:
        return torch.from_numpy(self._at(1, canvas_index, pass_index).random(length))

    def renoise(self, canvas_index: int, pass_index: int, length: int, vocab: int) -> torch.Tensor:
        return torch.from_numpy(self._at(2, canvas_index, pass_index).integers(0, vocab, length))

    def _at(self, *address: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *address])


def inverse_cdf(probs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The sampler law both sides follow: the smallest id whose cumulated probability exceeds u · total.

    probs float32 [N, V] are cumulated in float64; uniform float64 [N]; returns int64 [N].
    """
    cumulated = probs.double().cumsum(-1)
    target = uniform[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, target, right=True)[:, 0].clamp_max(probs.shape[-1] - 1)


# --------------------------------------------------------------------------------------------------------------------
# Shapes and weights


@dataclass(frozen=True)
class Shape:
    """The sizes of a tiny model. `layers` spells the kinds, "s" sliding and "f" full; a last "s" is forced to full."""

    layers: str = "ssf"
    vocab_size: int = 97
    hidden_size: int = 48
    intermediate_size: int = 48
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 8
    num_global_key_value_heads: int | None = 1
    global_head_dim: int = 16
    num_experts: int = 6
    top_k_experts: int = 2
    moe_intermediate_size: int = 16
    sliding_window: int = 8
    canvas_length: int = 12
    sliding_theta: float = 10_000.0
    full_theta: float = 1_000_000.0
    partial_rotary_factor: float = 0.25
    final_logit_softcapping: float = 30.0
    rms_norm_eps: float = 1e-6
    use_bidirectional_attention: str | None = None
    eos_token_id: int | tuple[int, ...] = 1

    @property
    def layer_types(self) -> list[str]:
        """As asked for, the last layer not yet forced to full attention."""
        return [{"s": "sliding_attention", "f": "full_attention"}[kind] for kind in self.layers]

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else self.eos_token_id

    def to_config(self) -> DiffusionGemmaConfig:
        text = DiffusionGemmaTextConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=len(self.layers),
            layer_types=self.layer_types,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            num_global_key_value_heads=self.num_global_key_value_heads,
            global_head_dim=self.global_head_dim,
            num_experts=self.num_experts,
            top_k_experts=self.top_k_experts,
            moe_intermediate_size=self.moe_intermediate_size,
            sliding_window=self.sliding_window,
            max_position_embeddings=4096,
            rms_norm_eps=self.rms_norm_eps,
            final_logit_softcapping=self.final_logit_softcapping,
            use_bidirectional_attention=self.use_bidirectional_attention,
            eos_token_id=self.eos_token_id if isinstance(self.eos_token_id, int) else list(self.eos_token_id),
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": self.sliding_theta},
                "full_attention": {
                    "rope_type": "proportional",
                    "rope_theta": self.full_theta,
                    "partial_rotary_factor": self.partial_rotary_factor,
                },
            },
        )
        # The smallest vision tower that can be built. Its weights are never used: these tests send no image.
        vision = Gemma4VisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            patch_size=4,
            position_embedding_size=16,
        )
        return DiffusionGemmaConfig(text_config=text, vision_config=vision, canvas_length=self.canvas_length)


def random_shape(seed: int) -> Shape:
    """A shape drawn from everything these tests want to cover; the same seed gives the same shape."""
    rng = np.random.default_rng([seed, 0x5CAB])

    def pick(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    heads = int(pick(2, 4, 6))
    divisors = [n for n in range(1, heads + 1) if heads % n == 0]
    experts = int(rng.integers(4, 17))
    return Shape(
        layers="".join(pick("s", "s", "f") for _ in range(int(rng.integers(2, 8)))),
        vocab_size=int(rng.integers(64, 513)),
        hidden_size=int(pick(32, 48, 64, 80, 96)),
        intermediate_size=int(pick(24, 48, 100)),
        num_attention_heads=heads,
        num_key_value_heads=pick(*divisors),
        head_dim=int(pick(4, 8, 12, 16)),
        num_global_key_value_heads=pick(None, *divisors),
        global_head_dim=int(pick(8, 16, 24, 32)),
        num_experts=experts,
        top_k_experts=int(rng.integers(1, 5)),
        moe_intermediate_size=int(pick(8, 16, 20)),
        sliding_window=int(pick(2, 5, 8, 16)),
        canvas_length=int(rng.integers(8, 17)),
        sliding_theta=pick(100.0, 10_000.0),
        full_theta=pick(1_000.0, 1_000_000.0),
        partial_rotary_factor=pick(0.25, 0.5, 1.0),
        final_logit_softcapping=pick(30.0, 15.0),
        rms_norm_eps=pick(1e-6, 1e-5),
        use_bidirectional_attention=pick(None, "vision"),
    )


def build_oracle(
    shape: Shape,
    seed: int = 0,
    *,
    sharpness: float = 1.0,
    tied_experts: bool = False,
    unused_experts: int = 0,
    representable_in: torch.dtype | None = None,
) -> Oracle:
    """A random model of this shape.

    sharpness: multiplies the last norm's weights, so the logits; above 1 the entropies fall and canvases settle early.
    tied_experts: experts 2i and 2i+1 become copies of each other with equal router rows, so that every token meets
        exact ties, also at the border between the k-th and the next expert. Either choice gives the same sum.
    unused_experts: the router never picks the last that many experts, whose weights are enormous: one slip is visible.
    representable_in: round all weights to what this dtype can hold, so that loading in it loses nothing.
    """
    torch.manual_seed(seed)  # for the vision tower, which keeps its own initial weights
    model = DiffusionGemmaForBlockDiffusion(shape.to_config()).eval()
    encoder, decoder = model.model.encoder.language_model, model.model.decoder
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():  # the encoder's text weights are the same tensors
            parameter.copy_(_random_weight(name, parameter.shape, _generator(seed, name)))
        decoder.norm.weight.mul_(sharpness)
        for mode, layers in (("encode", encoder.layers), ("denoise", decoder.layers)):
            for index, layer in enumerate(layers):
                layer.layer_scalar.uniform_(0.6, 1.2, generator=_generator(seed, f"{mode}.{index}"))
        for index, layer in enumerate(decoder.layers):
            if tied_experts:
                _tie_experts_in_pairs(layer)
            if unused_experts:
                _starve_last_experts(layer, unused_experts, _generator(seed, f"starve.{index}"))
        if representable_in is not None:
            for tensor in itertools.chain(model.parameters(), (layer.layer_scalar for layer in encoder.layers)):
                tensor.copy_(tensor.to(representable_in))
            for layer in decoder.layers:
                layer.layer_scalar.copy_(layer.layer_scalar.to(representable_in))
    return Oracle(shape, model)


def _generator(seed: int, name: str) -> torch.Generator:
    """A generator of its own for each tensor, so that adding a layer leaves the weights of the others as they are."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))


def _random_weight(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Random values at a scale where every part of the network matters and rounding errors do not grow.

    The second needs care: with freely random weights the map from one pass's logits to the next one's is chaotic, and
    two correct programs part after ten passes. Calmer attention scores, router scores and self-conditioning keep it
    tame; leaving self-conditioning out still moves the logits by more than 1.
    """
    if "norm" in name or name.endswith(("router.scale", "per_expert_scale")):
        low, high = (0.2, 0.6) if name.endswith(("q_norm.weight", "k_norm.weight")) else (0.5, 1.5)
        return torch.empty(shape).uniform_(low, high, generator=generator)
    normal = torch.randn(shape, generator=generator)
    if name == "embed_tokens.weight":
        return normal * 3 / shape[-1] ** 0.5  # logits come out with a spread of about 3
    if name.endswith("router.proj.weight"):
        return normal * 1.5  # the router's input has length 1, so the scores have a spread of 1.5
    factor = torch.empty(()).uniform_(0.7, 1.4, generator=generator)
    if name == "self_conditioning.down_proj.weight":
        factor *= 0.2
    return normal * factor / shape[-1] ** 0.5


def _tie_experts_in_pairs(layer: torch.nn.Module) -> None:
    experts, router = layer.experts, layer.router
    for tensor in (experts.gate_up_proj, experts.down_proj, router.proj.weight, router.per_expert_scale):
        paired = tensor.shape[0] // 2 * 2
        tensor[1:paired:2] = tensor[0:paired:2].clone()


def _starve_last_experts(layer: torch.nn.Module, count: int, generator: torch.Generator) -> None:
    """The used experts' router rows come in opposite pairs, so of each pair one score is positive; the starved
    experts' rows are zero and score 0. With at least top-k pairs, a starved expert can never be among the top k."""
    router, experts = layer.router, layer.experts
    used = router.proj.weight.shape[0] - count
    assert used % 2 == 0, "used experts come in pairs"
    assert used // 2 >= router.config.top_k_experts, "too few used experts for this top-k"
    half = torch.randn(used // 2, router.hidden_size, generator=generator) * 1.5
    router.proj.weight[:used] = torch.cat([half, -half])
    router.proj.weight[used:] = 0
    experts.gate_up_proj[used:] = 1e4
    experts.down_proj[used:] = 1e4


# --------------------------------------------------------------------------------------------------------------------
# What a generation was asked for, and what happened


@dataclass(frozen=True)
class Settings:
    """Options of one generation; the names are those of `scumble.GenerationConfig`, see `as_dict`."""

    max_new_tokens: int = 24
    max_denoising_steps: int = 8
    entropy_bound: float = 0.1
    t_min: float = 0.4
    t_max: float = 0.8
    stability_threshold: int = 1
    confidence_threshold: float = 0.005
    canvas_length: int | None = None
    ignore_eos: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclass(frozen=True)
class PassRecord:
    """One pass of one row. L positions, V ids; ids are int64."""

    canvas_index: int
    pass_index: int
    temperature: float
    canvas_in: torch.Tensor  # [L] ids the model saw
    logits: torch.Tensor  # [L, V] float32, after the soft-cap, before the temperature
    entropy: torch.Tensor  # [L] nats, of softmax(logits / temperature)
    proposal: torch.Tensor  # [L] ids drawn
    accepted: torch.Tensor  # [L] bool
    argmax: torch.Tensor  # [L] ids
    canvas_out: torch.Tensor  # [L] ids, accepted proposals and fresh noise
    stopped: bool  # the stable-and-confident rule ended the canvas with this pass
    draw_gap: torch.Tensor  # [L] log-odds between the uniform number and the nearer border of the drawn id
    stop_gap: float  # nats between the mean entropy and confidence_threshold
    accept_gap: float  # nats between the accepted set and another one
    router_gap: float  # smallest gap between the k-th and the next expert's score

    @property
    def draw_margins(self) -> torch.Tensor:
        """[L] the logit error that each position's draw withstands. A cumulated probability F has the odds F / (1 - F),
        a quotient of two sums of exp(z / T): an error e in every z moves the log-odds by 2e / T at most."""
        return self.draw_gap * self.temperature / 2

    @property
    def margin(self) -> float:
        """The logit error that every decision of this pass withstands.

        An error e in the logits moves an entropy by about e / T, and two logits against each other by 2e. The router's
        scores are smaller numbers than the logits and come earlier in the network, so their errors are below e.
        Proposals that are not accepted are thrown away and decide nothing.
        """
        top_two = self.logits.topk(2, dim=-1).values
        return min(
            (top_two[:, 0] - top_two[:, 1]).min().item() / 2,
            self.draw_margins[self.accepted].min().item(),
            self.temperature * self.stop_gap,
            self.temperature * self.accept_gap / 2,
            self.router_gap,
        )


@dataclass(frozen=True)
class OracleRun:
    """A whole generation of one row."""

    token_ids: list[int]  # cut behind the first end-of-sequence id and at max_new_tokens
    finish_reason: str  # "stop" | "length"
    passes: list[PassRecord] = field(repr=False)

    @property
    def passes_per_canvas(self) -> list[int]:
        return [len(list(group)) for _, group in itertools.groupby(self.passes, key=lambda p: p.canvas_index)]

    @property
    def margin(self) -> float:
        return min(record.margin for record in self.passes)


# --------------------------------------------------------------------------------------------------------------------
# The oracle


@dataclass
class Oracle:
    """A `transformers` model with the few verbs that the tests compare."""

    shape: Shape
    model: DiffusionGemmaForBlockDiffusion = field(repr=False)
    _decisive: dict[tuple, tuple[RecordedNoise, OracleRun]] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, folder: Path, shape: Shape, dtype: torch.dtype = torch.float32) -> Oracle:
        """What `from_pretrained` makes of a folder; `shape` is only carried along."""
        return cls(shape, DiffusionGemmaForBlockDiffusion.from_pretrained(folder, dtype=dtype).eval())

    @torch.no_grad()
    def encode(
        self, ids: torch.Tensor | Sequence[int], cache: DynamicCache | None = None
    ) -> tuple[torch.Tensor, DynamicCache]:
        """Hidden states [n, D] after the last norm, and the cache, to which the ids were appended."""
        cache = DynamicCache(config=self.model.config.text_config) if cache is None else cache
        ids = torch.as_tensor(ids)
        out = self.model.model.encoder(input_ids=ids[None], past_key_values=cache)
        return out.last_hidden_state[0], out.past_key_values

    @torch.no_grad()
    def denoise_logits(
        self, canvas: torch.Tensor, cache: DynamicCache, previous_logits: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits [L, V], float32 after the soft-cap. previous_logits are those of the last pass, already divided by its
        temperature; as in `generate` they pass through the dtype of the embedding."""
        if previous_logits is not None:
            previous_logits = previous_logits[None].to(self.model.dtype)
        out = self.model(
            decoder_input_ids=canvas[None], past_key_values=cache, self_conditioning_logits=previous_logits
        )
        return out.logits[0]

    def generate(
        self, ids: Sequence[int], noise: Noise, settings: Settings, draft: Sequence[int] | None = None
    ) -> OracleRun:
        return self.generate_batch([ids], [noise], settings, None if draft is None else [draft])[0]

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        noises: Sequence[Noise],
        settings: Settings,
        drafts: Sequence[Sequence[int]] | None = None,
    ) -> list[OracleRun]:
        """`transformers`' own `generate` on prompts of equal length, each row with its own noise.

        drafts: a whole canvas for each row, from which its first canvas starts instead of from noise.
        """
        eos = () if settings.ignore_eos else self.shape.eos_ids
        recorder = _Recorder(self.model, noises, settings)
        with recorder.installed():
            out = self.model.generate(
                torch.tensor(prompts),
                max_new_tokens=settings.max_new_tokens,
                max_denoising_steps=settings.max_denoising_steps,
                sampler_config=hf_generation.EntropyBoundSamplerConfig(entropy_bound=settings.entropy_bound),
                t_min=settings.t_min,
                t_max=settings.t_max,
                stability_threshold=settings.stability_threshold,
                confidence_threshold=settings.confidence_threshold,
                eos_token_id=list(eos) or None,
                pad_token_id=0,
                **({} if drafts is None else {"decoder_input_ids": torch.tensor(drafts)}),
            )
        new_tokens = out.sequences[:, len(prompts[0]) :].tolist()
        return [
            self._finish(row, records, eos, settings) for row, records in zip(new_tokens, recorder.rows, strict=True)
        ]

    def _finish(
        self, tokens: list[int], records: list[PassRecord], eos: tuple[int, ...], settings: Settings
    ) -> OracleRun:
        """Cut behind the first end of sequence. `transformers` rounds the length up to whole canvases and lets a row
        that has ended go on beside the others; both are no part of what was asked for."""
        length = settings.canvas_length or self.shape.canvas_length
        end = next((i + 1 for i, token in enumerate(tokens) if token in eos), len(tokens))
        canvases = math.ceil(end / length)
        kept = tokens[: min(end, settings.max_new_tokens)]
        return OracleRun(
            token_ids=kept,
            finish_reason="stop" if kept[-1] in eos else "length",
            passes=[record for record in records if record.canvas_index < canvases],
        )

    def save(
        self,
        folder: Path,
        *,
        spelling: str = "transformers",
        shard_size: str = "1GB",
        vision: bool = True,
        encoder_copies: bool = False,
    ) -> Path:
        """Write a checkpoint folder.

        spelling: of config.json, "transformers" (`per_layer_config`) or "release" (`global_head_dim`, …, every value
            written out, end-of-sequence ids at the top level, `layer_types` before their last was forced).
        shard_size: in `transformers`' words, for instance "30KB"; what does not fit is split and an index is written.
        vision: with the vision tower's weights, as the release has them.
        encoder_copies: store the encoder's tied text weights a second time, under their own names.
        """
        self.model.save_pretrained(folder, max_shard_size=shard_size)
        if encoder_copies or not vision:
            _rewrite_weights(folder, vision=vision, encoder_copies=encoder_copies)
        if spelling == "release":
            self._write_release_config(folder / "config.json")
        return folder

    def _write_release_config(self, path: Path) -> None:
        config = json.loads(path.read_text())
        eos = list(self.shape.eos_ids)
        text = config["text_config"]
        text.pop("per_layer_config")
        text.update(
            global_head_dim=self.shape.global_head_dim,
            num_global_key_value_heads=self.shape.num_global_key_value_heads,
            layer_types=self.shape.layer_types,
            final_logit_softcapping=self.shape.final_logit_softcapping,
            dtype="float32",
        )
        config.update(canvas_length=self.shape.canvas_length, eos_token_id=eos, vision_soft_tokens_per_image=280)
        path.write_text(json.dumps(config, indent=2))


def _rewrite_weights(folder: Path, *, vision: bool, encoder_copies: bool) -> None:
    weight_map = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors = safetensors.torch.load_file(path)
        if not vision:
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(VISION)}
        if encoder_copies:
            for name, tensor in list(tensors.items()):
                tied = name.startswith(DECODER) and "self_conditioning" not in name and "layer_scalar" not in name
                if tied:
                    tensors[ENCODER_TEXT + name.removeprefix(DECODER)] = tensor.clone()
        safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, path.name)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        index.write_text(json.dumps({**json.loads(index.read_text()), "weight_map": weight_map}))


def stored_names(folder: Path) -> set[str]:
    """The names of all tensors in a checkpoint folder."""
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safetensors.safe_open(path, "pt") as file:
            names |= set(file.keys())
    return names


def decisive_run(
    oracle: Oracle, ids: Sequence[int], settings: Settings, first_seed: int = 0, draft: Sequence[int] | None = None
) -> tuple[RecordedNoise, OracleRun]:
    """The first noise seed whose run stays clear of every border that rounding could cross, and that run. The oracle
    remembers it."""
    key = (tuple(ids), settings, first_seed, draft if draft is None else tuple(draft))
    if key not in oracle._decisive:
        noises = (RecordedNoise(seed) for seed in range(first_seed, first_seed + 50))
        runs = ((noise, oracle.generate(ids, noise, settings, draft)) for noise in noises)
        found = next((pair for pair in runs if pair[1].margin > BORDER), None)
        assert found is not None, "50 noise seeds, and each run comes near a border: these settings invite ties"
        oracle._decisive[key] = found
    return oracle._decisive[key]


# --------------------------------------------------------------------------------------------------------------------
# Listening in on transformers' loop


class _Recorder:
    """Feeds noise into `transformers`' `generate` and writes down its passes.

    `installed()` puts it in place of the name `torch` inside the generation module: `multinomial` and `randint` are
    answered here, everything else by the real torch. Two methods of the model are wrapped to know where the loop is.
    """

    def __init__(self, model: DiffusionGemmaForBlockDiffusion, noises: Sequence[Noise], settings: Settings) -> None:
        self.model = model
        self.noises = noises
        self.settings = settings
        self.rows: list[list[PassRecord]] = [[] for _ in noises]
        self.canvas_index = -1
        self.pass_index: int | None = None  # None: a canvas is being started
        self.draw_gap = torch.empty(0)
        self.router_gap = math.inf

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def randint(self, low: int, high: int, size: tuple[int, int], device: torch.device) -> torch.Tensor:
        assert (low, size[0]) == (0, len(self.noises))
        if self.pass_index is None:
            rows = [noise.initial(self.canvas_index, size[1], high) for noise in self.noises]
        else:
            rows = [noise.renoise(self.canvas_index, self.pass_index, size[1], high) for noise in self.noises]
        return torch.stack(rows)

    def multinomial(self, probs: torch.Tensor, num_samples: int) -> torch.Tensor:
        assert num_samples == 1
        length = probs.shape[0] // len(self.noises)
        uniform = torch.cat([noise.uniform(self.canvas_index, self.pass_index, length) for noise in self.noises])
        ids = inverse_cdf(probs, uniform)
        mass = probs.double() / probs.double().sum(-1, keepdim=True)
        upper = mass.cumsum(-1).gather(-1, ids[:, None])[:, 0].clamp_max(1)
        lower = (upper - mass.gather(-1, ids[:, None])[:, 0]).clamp_min(0)
        # The log-odds of 0 and 1 are infinite: an outer border is never crossed.
        gap = torch.minimum((upper.logit() - uniform.logit()).abs(), (uniform.logit() - lower.logit()).abs())
        self.draw_gap = gap.view(len(self.noises), length)
        self.proposal = ids.view(len(self.noises), length)
        return ids[:, None]

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        model, config = self.model, self.model.config
        canvas_length = config.canvas_length
        config.canvas_length = self.settings.canvas_length or canvas_length
        routers = [layer.router for layer in model.model.decoder.layers]
        hooks = [router.register_forward_hook(self._watch_router) for router in routers]
        hf_generation.torch = self
        model._prepare_denoiser_inputs = self._start_canvas
        model._denoising_step = self._denoise
        try:
            yield
        finally:
            del model._denoising_step, model._prepare_denoiser_inputs
            hf_generation.torch = torch
            config.canvas_length = canvas_length
            for hook in hooks:
                hook.remove()

    def _watch_router(self, router: torch.nn.Module, inputs: Any, outputs: tuple[torch.Tensor, ...]) -> None:
        probs, k = outputs[0], router.config.top_k_experts
        if k < probs.shape[-1]:
            best = probs.topk(k + 1, dim=-1).values.log()
            gap = best[:, k - 1] - best[:, k]
            gap = gap[gap > 0]  # an exact tie is a tie by construction (`tied_experts`): either choice is right
            self.router_gap = min(self.router_gap, gap.min().item() if gap.numel() else math.inf)

    def _start_canvas(self, *args: Any, **kwargs: Any) -> Any:
        self.canvas_index += 1
        self.pass_index = None
        return type(self.model)._prepare_denoiser_inputs(self.model, *args, **kwargs)

    def _denoise(self, **kwargs: Any) -> Any:
        self.pass_index = 0 if self.pass_index is None else self.pass_index + 1
        self.router_gap = math.inf
        was_finished = kwargs["finished_denoising"].clone()
        canvas_in = kwargs["current_canvas"].clone()
        forward, seen = kwargs.pop("decoder_forward"), {}

        def forward_and_keep(**inputs: Any) -> Any:
            seen["logits"] = (out := forward(**inputs)).logits
            return out

        result = type(self.model)._denoising_step(self.model, decoder_forward=forward_and_keep, **kwargs)
        canvas_out, argmax, _, finished = result
        remaining, sampler = kwargs["cur_step"], kwargs["sampler"]
        low, high = self.settings.t_min, self.settings.t_max
        temperature = low + (high - low) * remaining / self.settings.max_denoising_steps
        for row, records in enumerate(self.rows):
            if was_finished[row]:
                continue
            entropy = torch.distributions.Categorical(logits=seen["logits"][row] / temperature).entropy()
            records.append(
                PassRecord(
                    canvas_index=self.canvas_index,
                    pass_index=self.pass_index,
                    temperature=temperature,
                    canvas_in=canvas_in[row],
                    logits=seen["logits"][row].clone(),
                    entropy=entropy,
                    proposal=self.proposal[row],
                    accepted=sampler.accepted_token_mask[row].clone(),
                    argmax=argmax[row].clone(),
                    canvas_out=canvas_out[row].clone(),
                    stopped=bool(finished[row]),
                    draw_gap=self.draw_gap[row],
                    stop_gap=abs(entropy.mean().item() - self.settings.confidence_threshold),
                    accept_gap=_accept_gap(entropy, self.settings.entropy_bound),
                    router_gap=self.router_gap,
                )
            )
        return result


def _accept_gap(entropy: torch.Tensor, bound: float) -> float:
    """How far, in nats, the accepted set of positions is from another one."""
    ascending = entropy.sort().values
    before = ascending.cumsum(0) - ascending  # what the bound is compared with
    count = int((before <= bound).sum())
    margin = (before[1:] - bound).abs().min().item() if len(before) > 1 else math.inf
    if count < len(ascending):  # the last accepted and the first rejected position must not be able to swap
        margin = min(margin, (ascending[count] - ascending[count - 1]).item())
    return margin


def clone_cache(cache: DynamicCache) -> DynamicCache:
    """An independent copy, because encoding appends in place."""
    return copy.deepcopy(cache)

"""One transformer, two ways to run it: encode (causal, writes the cache) and denoise (bidirectional, reads it).
Reading a text that may yet be thrown away is encoding that leaves the cache as it was.

Tokens of all segments lie one after another in a single [N, D] tensor; only attention knows where one ends.
Shapes: N tokens, D hidden, V vocabulary, L canvas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn

from scumble.config import LayerConfig, ModelConfig
from scumble.errors import InvalidRequest
from scumble.formats import Format, build
from scumble.formats.floats import FloatExperts, FloatWeight, unpacked
from scumble.formats.weight import ExpertWeights, Table, Weight
from scumble.model.attention import Attend, SegmentAttention
from scumble.model.cache import Cache
from scumble.model.layer import Layer
from scumble.model.layers import RMSNorm, SelfConditioning, rope_frequencies, rope_tables
from scumble.model.load_report import LoadReport
from scumble.model.rounding import CacheFormat
from scumble.model.segment import Segment
from scumble.model.step import stepper
from scumble.ops import REFERENCE, Ops, VocabQuery, VocabResult, choose, softcap

Ropes = dict[LayerConfig, tuple[Tensor, Tensor]]
"""cos and sin [N, 1, head_dim] of N tokens' positions, by kind of layer."""


@cache
def rounded_root(size: int, dtype: torch.dtype) -> float:
    return float(torch.tensor(size**0.5, dtype=dtype, device="cpu"))


def _weights_of(part: nn.Module) -> Iterator[tuple[nn.Module, str, Weight | ExpertWeights]]:
    """Of a layer, or of what is outside the layers of a model."""
    owners = (part.self_conditioning,) if isinstance(part, Transformer) else (part.self_attn, part.mlp, part)
    for owner in cast(tuple[nn.Module, ...], owners):
        for name, child in owner.named_children():
            if isinstance(child, Weight | ExpertWeights):
                yield owner, name, child


class Transformer(nn.Module):
    """The text model. Parameters are named as in a checkpoint, less the prefix `model.decoder.`."""

    load_report: LoadReport | None = None  # set by load_checkpoint
    quantized: Format | None = None  # after `convert`
    cache_format: CacheFormat | None = None  # of keys and values; None: the model's dtype

    def __init__(self, config: ModelConfig, ops: Ops = REFERENCE):
        super().__init__()
        self.config, self.ops = config, ops
        self.embed_tokens = Table(torch.empty(config.vocab_size, config.hidden_size), ops)
        self.layers = nn.ModuleList(Layer(config, layer, ops) for layer in config.layers)
        self.norm = RMSNorm(config.hidden_size)
        self.self_conditioning = SelfConditioning(
            config.hidden_size, config.intermediate_size, config.rms_norm_eps, ops
        )
        self._frequencies: dict[tuple[str, int, torch.device], Tensor] = {}
        assert config.layers[-1].kind == "full_attention"

    # --- the public face, by row --------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype

    @property
    def number_format(self) -> str:
        """Of most weights: "int8" or "int4" after `convert`, else the dtype's name."""
        return self.quantized or str(self.dtype).removeprefix("torch.")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Transformer:
        """Conversion (`.to`, `.float`) may need other operations than those that were chosen at load."""
        before = self.dtype, self.device
        for owner, name, weight in list(self.weights()):
            setattr(owner, name, unpacked(weight))
        super()._apply(fn, recurse)
        if (self.dtype, self.device) != before and self.ops is not REFERENCE:
            self.use(choose(self.device, self.dtype, self.config).ops)
        return self

    def use(self, ops: Ops) -> Transformer:
        """Let other operations serve from now on, in every layer; returns the model. For float weights."""
        for owner, name, weight in list(self.weights()):
            if not ops.packs:
                setattr(owner, name, unpacked(weight))
        for module in self.modules():
            if hasattr(module, "ops"):
                module.ops = ops  # type: ignore[assignment]
        if not ops.packs and self.quantized is None:
            self.embed_tokens.head = None
        return self

    # --- weights ------------------------------------------------------------------------------------------------

    def weights(self) -> Iterator[tuple[nn.Module, str, Weight | ExpertWeights]]:
        """Every weight that has a number format of its own: its owner, its name there, and itself."""
        for part in (*self.layers, self):
            yield from _weights_of(part)

    @torch.no_grad()
    def convert(self, form: Format | None, part: nn.Module | None = None) -> Transformer:
        """Weights in a number format, for the operations that the model uses; returns the model. From float weights.

        None: their own, laid out as the operations read them. "int8": one scale an output channel, and dynamic int8
        activations, one scale a token; logits and soft embeddings get an int8 copy of the table each (2 bytes a number
        on top). "int4": one scale for 32 numbers, the rest as int8; for memory. On a card the table has no copy, int4
        leaves activations as they are, and there are "fp8", as int8 with its scales, and "nvfp4" for experts. Norms,
        the router (its choice is a discrete one) and the embedding table stay as they were.
        part: one layer alone, or the model: what is outside its layers, last. Raises InvalidRequest.
        """
        if part is None:
            build.check(form, self.ops, self.device)
        if self.quantized is not None:
            if self.quantized != form:
                raise InvalidRequest(
                    f"the model is in {self.quantized} already; load it again for {form or 'bfloat16'}"
                )
            return self
        for one in (*self.layers, self) if part is None else (part,):
            for owner, name, weight in list(_weights_of(one)):
                if isinstance(weight, FloatWeight):
                    setattr(owner, name, build.weight(weight.weight, form, self.ops))
                elif isinstance(weight, FloatExperts):
                    setattr(owner, name, build.experts(weight.gate_up_proj, weight.down_proj, form, self.ops))
            if one is self:
                build.add_head(self.embed_tokens, form)
                self.quantized = form
        return self

    @property
    def nbytes(self) -> int:
        """Memory of all weights."""
        plain = sum(tensor.nbytes for tensor in (*self.parameters(), *self.buffers()))
        own = [weight for _, _, weight in self.weights() if not isinstance(weight, FloatWeight | FloatExperts)]
        return plain + sum(one.nbytes for one in own) + self.embed_tokens.nbytes - self.embed_tokens.weight.nbytes

    def new_cache(self) -> Cache:
        return Cache(self.config, self.dtype, self.device, self.cache_format)

    @torch.no_grad()
    def encode(self, ids: Tensor, cache: Cache) -> Tensor:
        """Encode ids [n] behind what the cache holds; returns hidden states [n, D] after the final norm."""
        return self.forward([Segment(torch.as_tensor(ids, device=self.device), cache, "encode")])

    @torch.no_grad()
    def denoise_logits(self, canvas: Tensor, cache: Cache, previous_logits: Tensor | None = None) -> Tensor:
        """Logits [L, V] in float32 after the soft-cap for canvas ids [L]; the cache stays as it was.

        previous_logits: the *processed* logits (soft-capped, divided by temperature) of the previous pass, or None.
        This materializes L·V numbers; generation uses `vocab_head` instead.
        """
        soft = None
        if previous_logits is not None:
            probabilities = torch.softmax(previous_logits.to(self.device).float(), dim=-1)
            soft = (probabilities.to(self.dtype) @ self.embed_tokens.weight).float()
        hidden = self.forward([Segment(torch.as_tensor(canvas, device=self.device), cache, "denoise", soft)])
        return self.logits(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [n, D] -> logits [n, V] in float32 after the soft-cap."""
        return softcap(self.embed_tokens.product(hidden).float(), self.config.final_logit_softcapping)

    def vocab_head(self, hidden: Tensor, query: VocabQuery) -> VocabResult:
        """What the model says at n positions, hidden [n, D], without ever holding n·V logits (ops/query.py)."""
        query.check(hidden.shape[0], self.config.vocab_size)
        table, cap = self.embed_tokens, self.config.final_logit_softcapping
        return self.ops.vocab_head(hidden, table.weight, query, cap=cap, head=table.head)

    # --- one forward over segments ------------------------------------------------------------------------------

    def forward(self, segments: Sequence[Segment]) -> Tensor:
        """Hidden states [N, D] of the tokens of all segments that are not quiet, after the final norm.

        After an error the caches hold what they held before.
        """
        begin, positions, denoise, heard = 0, [], [], []
        ahead: dict[Cache, int] = {}  # tokens that earlier segments of this batch append
        needed: dict[Cache, int] = {}  # tokens that a cache must have room for
        for segment in segments:
            n = segment.tokens.shape[0]
            before = ahead.get(segment.cache, 0)
            first = segment.cache.length + before
            needed[segment.cache] = max(needed.get(segment.cache, 0), before + n)
            if segment.mode == "encode":
                ahead[segment.cache] = before + n
            positions.append(torch.arange(first, first + n, device=self.device))
            denoise.append((segment.mode == "denoise", n))
            if not segment.quiet:
                heard.append(torch.arange(begin, begin + n, device=self.device))
            begin += n
        try:
            for cache, tokens in needed.items():
                cache.reserve(tokens)
            hidden = self.body(
                self._inputs(segments), self.ropes(torch.cat(positions)), self._flags(denoise)[:, None],
                SegmentAttention(segments, self.config, self.ops),
                torch.cat(heard or [positions[0][:0]]) if len(heard) < len(segments) else None,
            )  # fmt: skip
        except BaseException:
            for cache in needed:
                cache.rewind()
            raise
        for segment in segments:
            if segment.mode == "encode":
                segment.cache.length += segment.tokens.shape[0]
        return hidden

    def _inputs(self, segments: Sequence[Segment]) -> Tensor:
        """What goes into the first layer [N, D]. All tokens that are encoded are embedded in one call, and all that are
        denoised are conditioned in another."""
        denoised = [segment for segment in segments if segment.mode == "denoise"]
        encoded = [segment for segment in segments if segment.mode != "denoise"]
        made: dict[bool, Iterator[Tensor]] = {}
        for is_denoised, own in ((False, encoded), (True, denoised)):
            if own:
                tokens = torch.cat([segment.tokens for segment in own])
                x = self.condition(tokens, self._soft(own)) if is_denoised else self.embed(tokens)
                if len(own) == len(segments):
                    return x
                made[is_denoised] = iter(x.split([segment.tokens.shape[0] for segment in own]))
        return torch.cat([next(made[segment.mode == "denoise"]) for segment in segments])

    def _soft(self, segments: Sequence[Segment]) -> Tensor | None:
        """Of the previous pass [n, D]; zeros in a canvas's first pass, None where it is the first one of all."""
        parts = []
        for segment in segments:
            shape = segment.tokens.shape[0], self.config.hidden_size
            if segment.soft is not None and segment.soft.shape != shape:
                raise ValueError(f"soft embeddings must be {shape}, found {tuple(segment.soft.shape)}")
            parts.append(torch.zeros(shape, device=self.device) if segment.soft is None else segment.soft)
        return torch.cat(parts) if any(segment.soft is not None for segment in segments) else None

    def _flags(self, runs: Sequence[tuple[bool, int]]) -> Tensor:
        """[N] bool from runs of so many equal ones."""
        if len({flag for flag, _ in runs}) == 1:
            return torch.full((sum(n for _, n in runs),), runs[0][0], device=self.device)
        return torch.cat([torch.full((n,), flag, device=self.device) for flag, n in runs])

    def embed(self, tokens: Tensor) -> Tensor:
        """Embedding × √D. The factor is rounded to the model's dtype, as the released weights were trained with."""
        return self.embed_tokens(tokens) * self._scale

    def condition(self, tokens: Tensor, soft: Tensor | None) -> Tensor:
        """Input of a denoise segment: canvas embeddings joined with the soft embedding of the previous pass."""
        embedded = self.embed(tokens)
        scaled = torch.zeros_like(embedded) if soft is None else soft.to(self.dtype) * self._scale
        return self.self_conditioning.mix(embedded, scaled)

    @property
    def _scale(self) -> float:
        """√D as the model's dtype holds it; a plain number, so that nothing is copied to a device for it."""
        return rounded_root(self.config.hidden_size, self.dtype)

    def body(self, x: Tensor, ropes: Ropes, denoise: Tensor, attend: Attend, heard: Tensor | None = None) -> Tensor:
        """All layers and the final norm: x [N, D], ropes of its positions, denoise [N, 1] bool (which layer scalar).

        heard [M] int64: only these tokens' hidden states are made; the others fill the caches.
        """
        step = stepper(x, attend, self.config, self.ops)
        for index, (config, layer) in enumerate(zip(self.config.layers, self.layers, strict=True)):
            done = None if step is None else step(x, index, cast(Layer, layer), ropes[config])
            wanted = heard if index == len(self.layers) - 1 else None
            x = layer(x, index, ropes[config], attend, denoise, wanted) if done is None else done
        return self.ops.norm_for_products(x, self.norm.weight, self.config.rms_norm_eps) if x.shape[0] else x

    def ropes(self, positions: Tensor) -> Ropes:
        """Rotary tables of tokens at positions [N]."""
        return {layer: self._rope(layer, positions) for layer in dict.fromkeys(self.config.layers)}

    def _rope(self, layer: LayerConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
        key = (layer.kind, layer.head_dim, positions.device)
        if key not in self._frequencies:
            frequencies = rope_frequencies(self.config.rope(layer), layer.head_dim)
            self._frequencies[key] = frequencies.to(positions.device)
        return rope_tables(positions, self._frequencies[key], self.dtype)


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights of the text model, by name: the embedding once, nothing that is stored twice."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Transformer(config).state_dict().items()}

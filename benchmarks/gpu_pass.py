"""A pass of the release's shape made of the kernels alone, with random weights in any format: what gpu_day.py times.

It has the model's operations in the model's order, without loading, sampling or Python between rows, so that weights
that no checkpoint folder holds can be timed, and the whole can be captured as one CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scumble.config import LayerConfig, ModelConfig
from scumble.ops import VocabQuery
from scumble.ops.pages import Destination
from scumble.ops.triton import attention, experts, grouping, layouts, linear, norms, rotate, router, vocab
from scumble.ops.triton.activations import Activations, for_format
from scumble.ops.triton.packed import left_by_norms


@dataclass(frozen=True)
class LayerWeights:
    q: layouts.Layout
    k: layouts.Layout
    v: layouts.Layout | None
    o: layouts.Layout
    gate: layouts.Layout
    up: layouts.Layout
    down: layouts.Layout
    experts_up: layouts.Layout
    experts_down: layouts.Layout
    router: Tensor


def random_weight(format: str, dtype: torch.dtype, device: torch.device, *shape: int) -> layouts.Layout:
    """[..., N, K]. Bytes are drawn directly: making 23 G numbers first would take minutes."""
    *front, outputs, inputs = shape
    scale = inputs**-0.5
    if format == "fp8":
        weight = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        weight.bitwise_and_(0xBF)  # magnitudes below 2: no NaN, no extremes
        factor = torch.full((*front, outputs), scale, device=device)
        return layouts.Fp8(weight.view(torch.float8_e4m3fn), factor)
    if format == "int4":
        width = -(-inputs // layouts.BLOCK) * layouts.BLOCK
        words = torch.randint(-(2**31), 2**31, (*front, outputs, width // 8), dtype=torch.int32, device=device)
        sizes = *front, width // layouts.BLOCK, outputs, layouts.BLOCK // layouts.GROUP
        steps = torch.full(sizes, scale / 5, dtype=torch.bfloat16, device=device)
        return layouts.Int4(words, steps, inputs)
    return layouts.Plain(torch.empty(shape, dtype=dtype, device=device).normal_(0, scale))


class Pass:
    """All layers, the head and the soft embedding, for `rows` canvases (or single steps) over `context` cached tokens.

    format: of the experts; dense: of all other products. The embedding stays in the model's dtype.
    """

    def __init__(
        self, config: ModelConfig, format: str, dense: str, dtype: torch.dtype, device: torch.device, context: int = 0
    ):
        self.config, self.format, self.dense, self.dtype, self.device = config, format, dense, dtype, device
        self.layers = [self._layer(layer) for layer in config.layers]
        self.embedding = torch.empty(config.vocab_size, config.hidden_size, dtype=dtype, device=device).normal_(0, 0.05)
        self.one = {n: torch.ones(n, dtype=dtype, device=device) for n in self._norm_sizes()}
        self.per_expert = torch.ones(config.num_experts, dtype=dtype, device=device)
        self.scale = torch.full((config.hidden_size,), config.hidden_size**0.5, dtype=dtype, device=device)
        self.context = context

    def _norm_sizes(self) -> set[int]:
        return {self.config.hidden_size, *(layer.head_dim for layer in self.config.layers)}

    def _layer(self, layer: LayerConfig) -> LayerWeights:
        c, size = self.config, self.config.hidden_size
        heads, groups = c.num_attention_heads * layer.head_dim, layer.num_key_value_heads * layer.head_dim

        def dense(outputs: int, inputs: int) -> layouts.Layout:
            return random_weight(self.dense, self.dtype, self.device, outputs, inputs)

        def mixed(outputs: int, inputs: int) -> layouts.Layout:
            return random_weight(self.format, self.dtype, self.device, c.num_experts, outputs, inputs)

        return LayerWeights(
            dense(heads, size), dense(groups, size), dense(groups, size) if layer.is_sliding else None,
            dense(size, heads), dense(c.intermediate_size, size), dense(c.intermediate_size, size),
            dense(size, c.intermediate_size),
            mixed(2 * c.moe_intermediate_size, size), mixed(size, c.moe_intermediate_size),
            torch.empty(c.num_experts, size, dtype=self.dtype, device=self.device).normal_(0, size**-0.5),
        )  # fmt: skip

    @property
    def nbytes(self) -> int:
        weights = [w.nbytes for layer in self.layers for w in vars(layer).values() if w is not None]
        return sum(weights) + self.embedding.nbytes

    def prepare(self, rows: int, tokens: int, context: int) -> None:
        """Static inputs: everything that a captured pass reads from the same place each time."""
        self.rows, self.tokens, self.step = rows, tokens, tokens == 1
        count = rows * tokens
        self.x = torch.randn(count, self.config.hidden_size, device=self.device).to(self.dtype)
        self.uniforms = torch.rand(count, dtype=torch.float64, device=self.device)
        self.denoise = torch.ones(count, 1, dtype=torch.bool, device=self.device)
        self.caches = []
        for layer in self.config.layers:
            seen = min(context, self.config.sliding_window - 1) if layer.is_sliding else context
            shape = rows, seen + tokens, layer.num_key_value_heads, layer.head_dim
            self.caches.append([torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2)])

    def body(self) -> Tensor:
        """Hidden states of all rows."""
        x = self.x
        for number in range(len(self.layers)):
            x = self._layer_pass(x, number)
        return norms.norm(x, self.one[x.shape[1]], self.config.rms_norm_eps)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Sampled ids and soft embeddings (of a step: ids only)."""
        return self.head(self.body())

    def head(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        query = VocabQuery(0.6, uniforms=self.uniforms, want_soft=not self.step)
        found = vocab.vocab_head(hidden, self.embedding, query, cap=self.config.final_logit_softcapping)
        assert found.sample is not None
        return found.sample, found.entropy if found.soft is None else found.soft

    def _layer_pass(self, x: Tensor, number: int) -> Tensor:
        c, w, layer = self.config, self.layers[number], self.config.layers[number]
        eps, size = c.rms_norm_eps, self.one[x.shape[1]]
        forms = left_by_norms(self.dense), left_by_norms(self.format)
        _, normed = norms.norm_for(x, size, eps, forms[0])
        attended = self._attention(normed, number, layer)
        (h, *_), given = norms.attention_tail_for(x, attended, (size, size, size), eps, forms)
        dense = self._mlp(given[0], w)
        mixed = self._experts(given[1], *self._routes(h, w), w)
        scalars = self.per_expert[:1], self.per_expert[:1]
        return norms.layer_tail(h, (dense, mixed), (size, size, size), self.denoise, scalars, eps)

    def _mlp(self, given: Activations, w: LayerWeights) -> Tensor:
        gate = linear.gated_linear(given, w.gate, w.up, step=self.step)
        return linear.linear(for_format(gate, self.dense), w.down, step=self.step)

    def _routes(self, h: Tensor, w: LayerWeights) -> tuple[Tensor, Tensor]:
        c = self.config
        return router.router(h, self.scale, w.router, self.per_expert, c.top_k_experts, c.rms_norm_eps)

    def _experts(self, given: Activations, weights: Tensor, chosen: Tensor, w: LayerWeights) -> Tensor:
        groups = grouping.group(chosen, self.config.num_experts, self.format)
        return experts.experts(given, weights, groups, w.experts_up, w.experts_down)

    def stages(self) -> dict[str, tuple[Callable[[], Any], int]]:
        """Parts of a pass, each over all layers and on the same activations; bytes that it reads, weights and caches.

        A part alone reads all of its weights from memory: those of 30 layers are more than a card's cache holds."""
        size, eps = self.one[self.x.shape[1]], self.config.rms_norm_eps
        normed, dense, mixed = (
            norms.norm_for(self.x, size, eps, left_by_norms(form))[1] for form in (self.dense, self.dense, self.format)
        )
        routes = [self._routes(self.x, w) for w in self.layers]

        def each(part: Callable[[int, LayerWeights], Any]) -> Callable[[], Any]:
            return lambda: [part(number, w) for number, w in enumerate(self.layers)][-1]

        return {
            "attention": (
                each(lambda number, w: self._attention(normed, number, self.config.layers[number])),
                self._bytes("q", "k", "v", "o") + sum(part.nbytes for pair in self.caches for part in pair),
            ),
            "dense": (each(lambda number, w: self._mlp(dense, w)), self._bytes("gate", "up", "down")),
            "experts": (
                each(lambda number, w: self._experts(mixed, *routes[number], w)),
                self._bytes("experts_up", "experts_down"),
            ),
            "vocabulary": (lambda: self.head(self.x), self.embedding.nbytes * (1 if self.step else 2)),
        }

    def _bytes(self, *names: str) -> int:
        return sum(part.nbytes for w in self.layers for name in names if (part := getattr(w, name)) is not None)

    @property
    def read(self) -> int:
        """Bytes that a pass over canvases reads: all weights, the table again for the soft embedding, and caches."""
        return self.nbytes + self.embedding.nbytes + sum(part.nbytes for pair in self.caches for part in pair)

    def _attention(self, given: Activations, number: int, layer: LayerConfig) -> Tensor:
        w, dim, eps = self.layers[number], layer.head_dim, self.config.rms_norm_eps
        heads, groups, one = self.config.num_attention_heads, layer.num_key_value_heads, self.one[layer.head_dim]
        tokens = self.rows * self.tokens
        table = one.expand(tokens, 1, -1).contiguous()
        both = linear.linear(given, *(w for w in (w.q, w.k, w.v) if w is not None), step=self.step)
        keys, values = self.caches[number]
        seen = keys.shape[1]
        places = torch.arange(tokens, device=self.device)
        places += (places // self.tokens + 1) * (seen - self.tokens)  # behind each row's context
        to = Destination(keys.flatten(0, 1), values.flatten(0, 1), places)
        q, _, _ = rotate.heads(both, (one, one), (table, table), groups, w.v is None, eps, to)
        out = []
        for row, asking in enumerate(q.split(self.tokens)):
            low = torch.zeros(self.tokens, dtype=torch.int32, device=self.device)
            name = attention.name_of(dim, self.step)
            queries = attention.one_row(low, torch.full_like(low, seen), heads // groups, name)
            out.append(attention.attend(asking, keys[row], values[row], queries, seen, step=self.step))
        given = for_format(torch.cat(out).flatten(1), self.dense)
        return linear.linear(given, w.o, step=self.step)

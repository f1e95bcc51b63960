"""Arithmetic and memory traffic of a pass, counted from a ModelConfig. Nothing here is measured.

A multiply-add counts as two operations. Weights are counted in elements, because their width is a matter of the number
format; each is read at least once a forward, whatever the number of tokens. L canvas, C context, B rows, n = B · L
tokens, D hidden, V vocabulary; a layer has H query heads, G key-value heads of size K, dense width I, E experts of
width F of which a token uses k.
"""

from __future__ import annotations

from dataclasses import dataclass

from scumble.config import LayerConfig, ModelConfig

STAGES = ("conditioning", "attention", "dense", "experts", "vocabulary")
"""Stages that have a floor. Norms, residuals and the sampler could all be fused into their neighbours: floor zero."""


@dataclass(frozen=True)
class Work:
    """flops: operations. weights: weight elements read. cached: elements of keys and values read from the cache."""

    flops: float
    weights: float
    cached: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.weights + other.weights, self.cached + other.cached)

    def times(self, count: float) -> Work:
        return Work(self.flops * count, self.weights * count, self.cached * count)


def pass_work(config: ModelConfig, canvas: int, context: int, rows: int = 1) -> dict[str, Work]:
    """One denoising pass of `rows` canvases, each over a context of its own."""
    n = rows * canvas
    attention = Work(0, 0)
    for layer in config.layers:
        seen = visible(config, layer, context)
        scores = 4.0 * n * config.num_attention_heads * layer.head_dim * (seen + canvas)
        attention += Work(scores, 0, rows * seen * kv_elements(layer)) + projections(config, layer, n)
    gated = 3.0 * config.hidden_size * config.intermediate_size
    # The table is read once for both products, head and soft embedding: tile by tile it stays in cache between them.
    table = float(config.vocab_size * config.hidden_size)
    return {
        "conditioning": Work(2 * n * gated, gated),
        "attention": attention,
        "dense": Work(2 * n * gated, gated).times(len(config.layers)),
        "experts": experts(config, n),
        "vocabulary": Work(4 * n * table, table),
    }


def encode_work(config: ModelConfig, tokens: int, context: int, predicted: int = 1) -> dict[str, Work]:
    """Encode `tokens` of one row behind `context`; `predicted`: for how many of them the head is needed."""
    attention = Work(0, 0)
    for layer in config.layers:
        seen = sum(visible_to(config, layer, context + i) for i in range(tokens))
        scores = 4.0 * config.num_attention_heads * layer.head_dim * seen
        attention += Work(scores, 0, visible(config, layer, context) * kv_elements(layer))
        attention += projections(config, layer, tokens)
    gated = 3.0 * config.hidden_size * config.intermediate_size
    table = float(config.vocab_size * config.hidden_size)
    return {
        "conditioning": Work(0, 0),
        "attention": attention,
        "dense": Work(2 * tokens * gated, gated).times(len(config.layers)),
        "experts": experts(config, tokens),
        "vocabulary": Work(2 * predicted * table, table if predicted else 0),
    }


def projections(config: ModelConfig, layer: LayerConfig, n: int) -> Work:
    """Queries, keys, values and output; a full layer has no value projection."""
    heads = config.num_attention_heads * layer.head_dim
    groups = layer.num_key_value_heads * layer.head_dim * (2 if layer.is_sliding else 1)
    weights = float(config.hidden_size * (2 * heads + groups))
    return Work(2 * n * weights, weights)


def experts(config: ModelConfig, n: int) -> Work:
    """Router and experts of all layers. Only experts that some token chose are read."""
    router = float(config.hidden_size * config.num_experts)
    one = 3.0 * config.hidden_size * config.moe_intermediate_size
    flops = 2 * n * router + 2 * n * config.top_k_experts * one
    return Work(flops, router + touched(config, n) * one).times(len(config.layers))


def touched(config: ModelConfig, n: int) -> float:
    """Experts that at least one of n tokens chose, on average, if every choice of k were as likely as any other."""
    return config.num_experts * (1 - (1 - config.top_k_experts / config.num_experts) ** n)


def visible(config: ModelConfig, layer: LayerConfig, context: int) -> int:
    """Context tokens that a layer shows to a canvas: a sliding layer's stop at window - 1."""
    return min(context, config.sliding_window - 1) if layer.is_sliding else context


def visible_to(config: ModelConfig, layer: LayerConfig, before: int) -> int:
    """Tokens that one causal token sees, itself included, with `before` tokens before it."""
    return visible(config, layer, before) + 1


def kv_elements(layer: LayerConfig) -> int:
    """Elements that one token keeps in one layer's cache."""
    return 2 * layer.num_key_value_heads * layer.head_dim


def parameters(config: ModelConfig) -> dict[str, float]:
    """Weight elements by stage; small vectors (norms, scales) left out. The embedding counts once."""
    gated = 3.0 * config.hidden_size * config.intermediate_size
    per_expert = 3.0 * config.hidden_size * config.moe_intermediate_size
    routed = config.num_experts * (per_expert + config.hidden_size)
    return {
        "conditioning": gated,
        "attention": sum(projections(config, layer, 1).weights for layer in config.layers),
        "dense": gated * len(config.layers),
        "experts": routed * len(config.layers),
        "vocabulary": float(config.vocab_size * config.hidden_size),
    }

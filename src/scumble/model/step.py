"""A layer of an autoregressive step in one native call, where the operations offer that (`Ops.few_tokens`).

It serves a few encoded tokens of one row; else, and where a weight's format is not for it, the layer runs module by
module, with the same results. The weights stay where they are; what goes along is addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from scumble.config import ModelConfig
from scumble.formats.weight import Addresses
from scumble.model.attention import Attend, SegmentAttention
from scumble.model.layer import Layer
from scumble.model.segment import Segment
from scumble.ops import Ops

Rope = tuple[Tensor, Tensor]
Step = Callable[[Tensor, int, Layer, Rope], Tensor | None]


def stepper(x: Tensor, attend: Attend, config: ModelConfig, ops: Ops) -> Step | None:
    """The function that runs one layer on x [n, D], where one call may do it; None where it may not."""
    if x.shape[0] > ops.few_tokens or not isinstance(attend, SegmentAttention) or len(attend.segments) != 1:
        return None
    segment = attend.segments[0]
    if segment.mode != "encode" or segment.quiet or segment.cache.form is not None:
        return None
    return lambda x, index, layer, rope: run(ops, x, index, layer, rope, segment, config)


def run(
    ops: Ops, x: Tensor, index: int, layer: Layer, rope: Rope, segment: Segment, config: ModelConfig
) -> Tensor | None:
    """Layer number `index` on x [n, D], which its cache takes up; None, with nothing done, where a weight is unfit.

    Addresses are gathered anew in every step: a weight may be replaced at any time.
    """
    found = list(addresses(layer))
    if any(one is None for one in found):
        return None
    n, shape, cache = x.shape[0], config.layers[index], segment.cache.layers[index]
    cache.reserve(n)
    seen = cache.end + n - cache.start
    sizes = (
        n, config.hidden_size, config.num_attention_heads, shape.num_key_value_heads, shape.head_dim,
        config.intermediate_size, config.num_experts, config.top_k_experts, config.moe_intermediate_size,
        cache.keys.stride(0), cache.start, cache.end, config.sliding_window if shape.is_sliding else seen, cache.first,
    )  # fmt: skip
    matrices = [part for one in found for part in one]  # type: ignore[union-attr]
    out = ops.layer_step(x, rope, cache.keys, cache.values, vectors(layer), matrices, sizes, config.rms_norm_eps)
    cache.extend(n)
    return out


def addresses(layer: Layer) -> Iterator[Addresses | None]:
    """Of every matrix, in the order of LayerWeights (ops/cpu/native.py)."""
    parts: dict[str, Any] = layer._modules  # nn.Module's attribute lookup would take most of the time of a step
    attention, mlp = parts["self_attn"]._modules, parts["mlp"]._modules
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        weight = attention.get(name)
        yield (None, None, None, None) if weight is None else weight.addresses()  # a full-attention layer has no v_proj
    for name in ("gate_proj", "up_proj", "down_proj"):
        yield mlp[name].addresses()
    yield from parts["experts"].addresses() or (None,)


def vectors(layer: Layer) -> list[Tensor]:
    """A layer's small weights, in the order of LayerWeights."""
    parts: dict[str, Any] = layer._modules
    attention, router = parts["self_attn"]._modules, parts["router"]
    norms = [
        parts["input_layernorm"], attention["q_norm"], attention["k_norm"], parts["post_attention_layernorm"],
        parts["pre_feedforward_layernorm"], parts["pre_feedforward_layernorm_2"],
        parts["post_feedforward_layernorm_1"], parts["post_feedforward_layernorm_2"],
        parts["post_feedforward_layernorm"],
    ]  # fmt: skip
    found: list[Any] = [
        *(norm._parameters["weight"] for norm in norms), router._parameters["scale"],
        router._modules["proj"]._parameters["weight"], router._parameters["per_expert_scale"],
        layer._buffers["layer_scalar"], layer._buffers["encode_layer_scalar"],
    ]  # fmt: skip
    return found

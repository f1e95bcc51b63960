"""A layer of an autoregressive step in one native call, where the operations offer that (`Ops.few_tokens`).

It serves a few encoded tokens of one row or of several; else, and where a weight's format is not for it, the layer runs
module by module, with the same results. The weights stay where they are; what goes along is addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from scumble.config import ModelConfig
from scumble.formats.weight import Addresses
from scumble.model.attention import Attend, SegmentAttention
from scumble.model.layer import Layer
from scumble.model.segment import Segment
from scumble.ops import Ops
from scumble.ops.api import StepRow

Rope = tuple[Tensor, Tensor]
Step = Callable[[Tensor, int, Layer, Rope], Tensor | None]


def stepper(x: Tensor, attend: Attend, config: ModelConfig, ops: Ops) -> Step | None:
    """The function that runs one layer on x [n, D], where one call may do it; None where it may not."""
    if x.shape[0] > ops.few_tokens or not isinstance(attend, SegmentAttention):
        return None
    segments = attend.segments
    if any(segment.mode != "encode" or segment.quiet or segment.cache.form is not None for segment in segments):
        return None
    if len({id(segment.cache) for segment in segments}) < len(segments):  # one sees what another appends
        return None
    return lambda x, index, layer, rope: run(ops, x, index, layer, rope, segments, config)


def run(
    ops: Ops, x: Tensor, index: int, layer: Layer, rope: Rope, segments: Sequence[Segment], config: ModelConfig
) -> Tensor | None:
    """Layer number `index` on x [N, D], which the segments' caches take up; None, with nothing done, where a weight is
    unfit.

    Addresses are gathered anew in every step: a weight may be replaced at any time.
    """
    found = list(addresses(layer))
    if any(one is None for one in found):
        return None
    shape, rows = config.layers[index], []
    for segment in segments:
        n, cache = segment.tokens.shape[0], segment.cache.layers[index]
        cache.reserve(n)
        window = config.sliding_window if shape.is_sliding else cache.end + n - cache.start
        rows.append(StepRow(cache.keys, cache.values, n, cache.start, cache.end, window, cache.first))
    sizes = (
        x.shape[0], config.hidden_size, config.num_attention_heads, shape.num_key_value_heads, shape.head_dim,
        config.intermediate_size, config.num_experts, config.top_k_experts, config.moe_intermediate_size,
    )  # fmt: skip
    matrices = [part for one in found for part in one]  # type: ignore[union-attr]
    out = ops.layer_step(x, rope, rows, vectors(layer), matrices, sizes, config.rms_norm_eps)
    for segment, row in zip(segments, rows, strict=True):
        segment.cache.layers[index].extend(row.n)
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

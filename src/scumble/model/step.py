"""An autoregressive step's layer in one native call. The weights stay where they are; what goes along is addresses.

It serves up to four encoded tokens of one row, in bfloat16 or int8 on the CPU; else the layer runs module by module.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scumble.config import ModelConfig
from scumble.formats.int8 import Int8Matrix
from scumble.model.attention import Attend, SegmentAttention
from scumble.model.segment import Segment
from scumble.ops import Ops
from scumble.ops.cpu.ops import FEW_ROWS, CpuOps

if TYPE_CHECKING:
    from scumble.model.transformer import Layer

Rope = tuple[Tensor, Tensor]
Step = Callable[[Tensor, int, "Layer", Rope], Tensor | None]
POINTERS = 14 + 9 * 3  # struct Weights of ops/cpu/src/layer.cpp
SIZES = 13


def stepper(x: Tensor, attend: Attend, config: ModelConfig, ops: Ops) -> Step | None:
    """The function that runs one layer on x [n, D], where one call may do it; None where it may not."""
    if not isinstance(ops, CpuOps) or x.shape[0] > FEW_ROWS:
        return None
    if not isinstance(attend, SegmentAttention) or len(attend.segments) != 1:
        return None
    segment = attend.segments[0]
    if segment.mode != "encode" or segment.quiet:
        return None
    lib = ops.lib
    return lambda x, index, layer, rope: run(lib, x, index, layer, rope, segment, config)


def run(
    lib: ctypes.CDLL, x: Tensor, index: int, layer: Layer, rope: Rope, segment: Segment, config: ModelConfig
) -> Tensor | None:
    """Layer number `index` on x [n, D], which its cache takes up; None, with nothing done, where a weight is unfit."""
    weights = addresses(layer)
    if weights is None:
        return None
    n, shape, cache = x.shape[0], config.layers[index], segment.cache.layers[index]
    cache.reserve(n)
    seen = cache.end + n - cache.start
    sizes = (ctypes.c_int64 * SIZES)(
        n, config.hidden_size, config.num_attention_heads, shape.num_key_value_heads, shape.head_dim,
        config.intermediate_size, config.num_experts, config.top_k_experts, config.moe_intermediate_size,
        cache.keys.stride(0), cache.start, cache.end, config.sliding_window if shape.is_sliding else seen,
    )  # fmt: skip
    out = torch.empty_like(x)
    lib.scumble_layer(
        x.data_ptr(), out.data_ptr(), rope[0].data_ptr(), rope[1].data_ptr(), cache.keys.data_ptr(),
        cache.values.data_ptr(), weights, sizes, config.rms_norm_eps, torch.get_num_threads(),
    )  # fmt: skip
    cache.extend(n)
    return out


def addresses(layer: Layer) -> ctypes.Array[Any] | None:
    """A layer's weights as struct Weights of ops/cpu/src/layer.cpp; None where one is no contiguous bfloat16 or int8.

    Made anew in every step: a weight may be replaced at any time, and reading forty addresses takes ten microseconds.
    """
    # Straight from the dictionaries: nn.Module's attribute lookup would take most of the time of a step.
    parts: dict[str, Any] = layer._modules
    attention, mlp = parts["self_attn"]._modules, parts["mlp"]._modules
    router, experts = parts["router"], parts["experts"]
    plain = [
        *(owner[name]._parameters["weight"] for owner, name in _norms(parts, attention)),
        router._parameters["scale"], router._modules["proj"]._parameters["weight"],
        router._parameters["per_expert_scale"], layer._buffers["layer_scalar"], layer._buffers["encode_layer_scalar"],
    ]  # fmt: skip
    out: list[int | None] = []
    for tensor in plain:
        if tensor.dtype is not torch.bfloat16 or not tensor.is_contiguous():
            return None
        out.append(tensor.data_ptr())
    linears = [attention.get(name) for name in ATTENTION] + [mlp[name] for name in MLP]
    matrices = [None if linear is None else linear.__dict__.get("matrix") or linear._parameters for linear in linears]
    matrices = [part["weight"] if isinstance(part, dict) else part for part in matrices]
    if "up" in experts.__dict__:
        matrices += [experts.up, experts.down]
    else:
        matrices += [experts._parameters["gate_up_proj"], experts._parameters["down_proj"]]
    for matrix in matrices:
        if matrix is None:  # a full-attention layer has no v_proj
            out += (None, None, None)
        elif isinstance(matrix, Int8Matrix):
            if matrix.lib is None:
                return None
            out += matrix.base
        elif isinstance(matrix, Tensor) and matrix.dtype is torch.bfloat16 and matrix.is_contiguous():
            out += (matrix.data_ptr(), None, None)
        else:
            return None
    return (ctypes.c_void_p * POINTERS)(*out)


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
NORMS = (
    "input_layernorm", "q_norm", "k_norm", "post_attention_layernorm", "pre_feedforward_layernorm",
    "pre_feedforward_layernorm_2", "post_feedforward_layernorm_1", "post_feedforward_layernorm_2",
    "post_feedforward_layernorm",
)  # fmt: skip


def _norms(parts: dict[str, Any], attention: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    return ((attention if name in ("q_norm", "k_norm") else parts, name) for name in NORMS)

"""Quantize a loaded model in place: a module swap from outside, layer by layer, each float weight freed on the way."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from scumble.errors import InvalidRequest
from scumble.formats import Format
from scumble.formats.int4_modules import Int4Experts, Int4Linear
from scumble.formats.int8_embedding import Int8Embedding
from scumble.formats.int8_modules import Int8Experts, Int8Linear
from scumble.model import Transformer
from scumble.model.layers import Linear
from scumble.model.transformer import Layer
from scumble.ops import ReferenceOps


@torch.no_grad()
def quantize(model: Transformer, form: Format = "int8") -> Transformer:
    """Linear layers and experts in `form`, for the operations that the model uses; returns the model.

    int8: one scale an output channel, and dynamic int8 activations, one scale a token; quicker than bfloat16. Logits
    and soft embeddings get an int8 copy of the embedding table each, on top of it (2 bytes a number).
    int4: one scale for 32 numbers, activations in bfloat16; for memory.
    Kept as they are: norms, the router (its choice is a discrete one), and the embedding table.
    """
    if model.device.type != "cpu":
        raise InvalidRequest(f"dtype {form} runs on the CPU, found device {model.device}; use bfloat16 there")
    if model.quantized is not None:
        if model.quantized != form:
            raise InvalidRequest(f"the model is in {model.quantized} already; load it again for {form}")
        return model
    for part in (*model.layers, model):
        quantize_part(part, form)
    return model


@torch.no_grad()
def quantize_part(part: nn.Module, form: Format) -> None:
    """One layer, or of the whole model what is outside its layers. Done when the model itself is."""
    ops = cast(ReferenceOps, part.ops)
    packed = None if ops.name == "cpu" else False
    if isinstance(part, Transformer):
        part.quantized = form
        _swap_linears(part.self_conditioning, form, ops, packed)
        if form == "int8":
            part.head = Int8Embedding(part.embed_tokens.weight, packed=packed)
        return
    layer = cast(Layer, part)
    gate_up, down = layer.experts.gate_up_proj, layer.experts.down_proj
    small = Int4Experts(gate_up, down, ops) if form == "int4" else Int8Experts(gate_up, down, packed)
    layer.experts = small  # type: ignore[assignment]
    _swap_linears(layer.self_attn, form, ops, packed)
    _swap_linears(layer.mlp, form, ops, packed)


def _swap_linears(owner: nn.Module, form: Format, ops: ReferenceOps, packed: bool | None) -> None:
    for name, child in list(owner.named_children()):
        if isinstance(child, Linear):
            weight = child.weight
            setattr(owner, name, Int4Linear(weight, ops) if form == "int4" else Int8Linear(weight, packed))

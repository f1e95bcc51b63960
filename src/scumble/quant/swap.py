"""Quantize a loaded model in place: a module swap from outside, layer by layer, each float weight freed on the way."""

from __future__ import annotations

from typing import cast

import torch

from scumble.errors import InvalidRequest
from scumble.kernels.int8 import Int8Matrix
from scumble.model import Transformer
from scumble.model.layers import Linear
from scumble.model.transformer import Layer
from scumble.quant.modules import Int8Experts, Int8Linear


@torch.no_grad()
def quantize(model: Transformer, packed: bool | None = None) -> Transformer:
    """int8 weights, one scale an output channel, and dynamic int8 activations, one scale a token; returns the model.

    Linear layers, experts and the head. Kept as they are: norms, the router (its choice is a discrete one), and the
    embedding table, which embeds and makes soft embeddings; so the head's int8 copy comes on top of it (1 byte a
    number). packed=False: the plain torch version, for tests.
    """
    if model.device.type != "cpu":
        raise InvalidRequest(f"dtype int8 runs on the CPU, found device {model.device}; use bfloat16 there")
    if model.head is not None:
        return model
    owners = [model.self_conditioning]
    for layer in cast("list[Layer]", model.layers):
        owners += [layer.self_attn, layer.mlp]
        layer.experts = Int8Experts(layer.experts.gate_up_proj, layer.experts.down_proj, packed)  # type: ignore[assignment,arg-type]
    for owner in owners:
        for name, child in list(owner.named_children()):
            if isinstance(child, Linear):
                setattr(owner, name, Int8Linear(child.weight, packed))
    model.head = Int8Matrix(model.embed_tokens.weight, packed=packed)
    return model

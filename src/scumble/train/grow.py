"""Deepen a model: new layers that change nothing at first and learn from there.

A layer adds what its two branches make, each behind a norm with a weight. With these weights at zero it hands on what
it was given, so the deeper model computes what the smaller one did; the norm's weights have gradients from the first
step on, and everything behind them from the second. The branches start as copies of layers that have learnt already.
(The idea: Chen et al., Net2Net, 1511.05641; depth by copied blocks: Kim et al., 2312.15166.)
"""

from __future__ import annotations

from dataclasses import replace

import torch

from scumble.model import Transformer

SILENT = {  # what these are filled with in a new layer
    "post_attention_layernorm.weight": 0.0, "post_feedforward_layernorm.weight": 0.0,
    "layer_scalar": 1.0, "encode_layer_scalar": 1.0,
}  # fmt: skip


def grow(model: Transformer, blocks: int) -> Transformer:
    """The model with its last block (sliding layers and the full one they lead to) put in `blocks` times more, silent,
    before the last. Same dtype and outputs.
    """
    layers = model.config.layers
    begin = max((i + 1 for i, layer in enumerate(layers[:-1]) if not layer.is_sliding), default=0)
    order = [*range(begin), *[*range(begin, len(layers))] * (blocks + 1)]  # of every new layer, the old one it is of
    first_old = len(order) - (len(layers) - begin)
    config = replace(model.config, layers=tuple(layers[old] for old in order))
    old_state = model.state_dict()
    state = {name: tensor for name, tensor in old_state.items() if not name.startswith("layers.")}
    for new, old in enumerate(order):
        silent = begin <= new < first_old
        for name, tensor in old_state.items():
            if name.startswith(f"layers.{old}."):
                part = name.removeprefix(f"layers.{old}.")
                state[f"layers.{new}.{part}"] = tensor.clone()
                if silent and part in SILENT:
                    state[f"layers.{new}.{part}"].fill_(SILENT[part])
    with torch.device("meta"):
        deeper = Transformer(config)
    deeper.load_state_dict(state, assign=True)
    return deeper

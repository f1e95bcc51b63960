"""Random weights for a new model."""

from __future__ import annotations

import torch

from scumble.config import ModelConfig
from scumble.model import Transformer


def new_model(config: ModelConfig, seed: int) -> Transformer:
    """A float32 model with weights drawn by a generator of its own: N(0, 1/fan_in), norms 1.

    The embedding has deviation 1/√D: inputs are scaled by √D to unit size, and logits start near unit size.
    Queries and keys are normed to length √head_dim and scores are not scaled (1.0), so q_norm and k_norm start at
    head_dim^-¼ each: scores then start with unit variance instead of saturating. The norms behind each branch start at
    (2 · layers)^-½, so that the residual stream keeps its size at the start.
    """
    model = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.fill_(parameter.shape[0] ** -0.25)
            if name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
                parameter.fill_((2 * len(config.layers)) ** -0.5)  # all branches together add unit variance
    return model

"""Mixture of experts: a router that sends every token to its top-k experts, and the experts' weights.

Shapes: N tokens, D hidden, E experts, k experts a token, F expert width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scumble.config import ModelConfig
from scumble.formats.floats import FloatExperts
from scumble.formats.weight import empty
from scumble.ops import Ops


class Router(nn.Module):
    """Softmax over all experts in float32, top-k, renormalised to sum 1, times a learned scale per expert.

    It reads the raw residual stream, so it has a norm (without weight) of its own.
    """

    def __init__(self, config: ModelConfig, ops: Ops):
        super().__init__()
        self.ops = ops
        self.scale = nn.Parameter(torch.ones(config.hidden_size))
        self.per_expert_scale = nn.Parameter(torch.ones(config.num_experts))
        self.proj = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.top_k = config.top_k_experts
        self.eps = config.rms_norm_eps

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """x [N, D] -> weights [N, k] float32, expert ids [N, k], probabilities [N, E] float32 where gradients may want
        them, else None."""
        return self.ops.router(x, self.scale, self.proj.weight, self.per_expert_scale, self.top_k, self.eps)


def float_experts(config: ModelConfig, ops: Ops) -> FloatExperts:
    """E gated MLPs with fused weights: gate_up_proj [E, 2F, D] (gate first), down_proj [E, D, F]."""
    count, size, width = config.num_experts, config.hidden_size, config.moe_intermediate_size
    return FloatExperts(empty(count, 2 * width, size), empty(count, size, width), ops)

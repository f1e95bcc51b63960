"""Mixture of experts: route every token to its top-k experts, sort by expert, one product a group, add back.

Shapes: N tokens, D hidden, E experts, k experts a token, F expert width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from scumble.config import ModelConfig
from scumble.kernels import fused, training, training_experts
from scumble.model.layers import geglu, rms_norm


class Router(nn.Module):
    """Softmax over all experts in float32, top-k, renormalised to sum 1, times a learned scale per expert.

    It reads the raw residual stream, so it has a norm (without weight) of its own.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(config.hidden_size))
        self.per_expert_scale = nn.Parameter(torch.ones(config.num_experts))
        self.proj = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.top_k = config.top_k_experts
        self.eps = config.rms_norm_eps

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """x [N, D] -> weights [N, k] float32, expert ids [N, k], probabilities [N, E] float32.

        The fused kernel, which serves only where no gradients are recorded, gives no probabilities.
        """
        scale, matrix, per_expert = self.scale, self.proj.weight, self.per_expert_scale
        if (lib := fused.serving(x, scale, matrix, per_expert)) is not None:
            return *fused.router(lib, x, scale, matrix, per_expert, self.top_k, self.eps), None
        factor = scale.float() * x.shape[-1] ** -0.5
        lib = training.serving(x)
        with torch.autocast(x.device.type, enabled=False):  # statistics stay in float32 in mixed-precision training too
            if lib is not None:
                h = training.norm(lib, x, factor, self.eps, torch.float32)
            else:
                h = rms_norm(x.float(), None, self.eps) * factor
            probabilities = torch.softmax(h @ matrix.float().T, dim=-1)
        weights, experts = torch.topk(probabilities, self.top_k, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        return weights * per_expert.float()[experts], experts, probabilities


class Experts(nn.Module):
    """E gated MLPs with fused weights: gate_up_proj [E, 2F, D] (gate first), down_proj [E, D, F]."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(config.num_experts, 2 * width, config.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(config.num_experts, config.hidden_size, width))

    def forward(self, x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        """x [N, D], weights and experts [N, k] -> weighted sum of the chosen experts' outputs [N, D]."""
        even = x.shape[1] % 2 == 0 and self.down_proj.shape[2] % 2 == 0  # the kernel takes numbers in pairs
        if even and (lib := fused.serving(x, self.gate_up_proj, self.down_proj)) is not None:
            return fused.experts(lib, x, weights, experts, self.gate_up_proj, self.down_proj)
        if (lib := training.serving(x)) is not None:
            return training_experts.experts(lib, x, weights, experts, self.gate_up_proj, self.down_proj)
        # unbind, not indexing: its gradient is one stack, not a zero-filled copy an expert
        up, down = self.gate_up_proj.unbind(), self.down_proj.unbind()
        return grouped(x, weights, experts, len(up), lambda expert: (up[expert], down[expert]))


def grouped(
    x: Tensor, weights: Tensor, experts: Tensor, count: int, matrices: Callable[[int], tuple[Tensor, Tensor]]
) -> Tensor:
    """Products expert by expert. matrices: of an expert that some token chose, gate_up [2F, D] and down [D, F]."""
    k = experts.shape[1]
    order = experts.flatten().argsort(stable=True)  # [N·k]: slots grouped by expert
    counts = torch.bincount(experts.flatten(), minlength=count).tolist()
    token = order // k
    outputs = []
    for expert, rows in enumerate(x[token].split(counts)):
        if rows.shape[0]:
            up, down = matrices(expert)
            gate, linear = (rows @ up.T).chunk(2, dim=-1)
            outputs.append(geglu(gate, linear) @ down.T)
    weighted = torch.cat(outputs).float() * weights.flatten()[order, None]
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    return out.index_add(0, token, weighted).to(x.dtype)

"""The small parts of a layer: norm weight, rotary tables, gated MLP. Shapes: N tokens, D hidden, K head_dim."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scumble.config import Rope
from scumble.formats.floats import FloatWeight
from scumble.formats.weight import Weight, empty
from scumble.ops import Ops


class RMSNorm(nn.Module):
    """The weight of an RMSNorm (plain, no 1 + weight); the operations apply it."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


def rope_frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Angular frequencies [head_dim / 2] in float32.

    "proportional" lays `partial_rotary_factor · head_dim / 2` frequencies out over the whole head_dim; the rest are 0,
    so those dimensions do not rotate.
    """
    rotated = head_dim // 2 if rope.kind == "default" else int(rope.partial_rotary_factor * head_dim // 2)
    exponent = torch.arange(0, 2 * rotated, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / (rope.theta**exponent)
    return F.pad(frequencies, (0, head_dim // 2 - rotated))


def rope_tables(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [N, 1, K] for positions [N]; angles in float32, tables in the model's dtype."""
    angles = positions.float()[:, None] * frequencies  # [N, K/2]
    angles = torch.cat((angles, angles), dim=-1)[:, None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


class GatedMLP(nn.Module):
    """down(gelu_tanh(gate(x)) · up(x)), D → F → D."""

    def __init__(self, hidden: int, intermediate: int, ops: Ops):
        super().__init__()
        self.ops = ops
        self.gate_proj: Weight = FloatWeight(empty(intermediate, hidden), ops)
        self.up_proj: Weight = FloatWeight(empty(intermediate, hidden), ops)
        self.down_proj: Weight = FloatWeight(empty(hidden, intermediate), ops)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj.product(self.ops.gated(x, self.gate_proj, self.up_proj))


class SelfConditioning(GatedMLP):
    """Mixes the soft embedding of the previous pass into the canvas: norm(embedding + mlp(norm(soft)))."""

    def __init__(self, hidden: int, intermediate: int, eps: float, ops: Ops):
        super().__init__(hidden, intermediate, ops)
        self.pre_norm = RMSNorm(hidden)
        self.eps = eps

    def mix(self, embedded: Tensor, soft: Tensor) -> Tensor:
        """embedded and soft [n, D] -> [n, D]"""
        signal = self(self.ops.norm_for_products(soft, self.pre_norm.weight, self.eps))
        return self.ops.rms_norm(embedded + signal, None, self.eps)  # the last norm has no weight

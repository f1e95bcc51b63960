"""The small parts of a layer: RMSNorm, rotary positions, gated MLP. Shapes: N tokens, D hidden, H heads, K head_dim."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scumble.config import Rope
from scumble.kernels import fused, training


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x · (mean(x²) + eps)^-½ · weight over the last axis, computed in float32, returned in x's dtype."""
    if (lib := fused.serving(x, weight)) is not None:
        return fused.rms_norm(lib, x, weight, eps)
    if (lib := training.serving(x)) is not None:
        return training.norm(lib, x, weight, eps, x.dtype)
    h = x.float()
    h = h * (h.square().mean(-1, keepdim=True) + eps).pow(-0.5)
    if weight is not None:
        h = h * weight.float()
    return h.to(x.dtype)


class Linear(nn.Linear):
    """A linear layer without bias, x [N, in] -> [N, out]."""

    def __init__(self, size: int, out: int):
        super().__init__(size, out, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim == 2 and training.serving(input) is not None:
            return training.linear(input, self.weight)
        return fused.linear(input, self.weight)


class RMSNorm(nn.Module):
    """RMSNorm with a plain weight (no 1 + weight)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)

    def for_products(self, x: Tensor) -> Tensor:
        """The same, in the dtype in which products will take it: in mixed-precision training bfloat16."""
        if (lib := training.serving(x)) is not None:
            return training.norm(lib, x, self.weight, self.eps, torch.bfloat16)
        return self(x)


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


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [N, H, K] by its positions ("rotate half": dimension i pairs with i + K/2)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def norm_rope(x: Tensor, norm: RMSNorm, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of the normed heads x [N, H, K]."""
    if (lib := fused.serving(x, norm.weight, cos, sin)) is not None:
        return fused.norm_rope(lib, x, norm.weight, cos, sin, norm.eps)
    if x.dtype is torch.bfloat16 and cos.dtype is torch.float32 and (lib := training.serving(x)) is not None:
        return training.norm_rope(lib, x, norm.weight, cos, sin, norm.eps)
    return apply_rope(norm(x), cos, sin)


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """gelu_tanh(gate) · up"""
    if (lib := fused.serving(gate, up)) is not None:
        return fused.geglu(lib, gate, up)
    if gate.dtype is torch.bfloat16 and (lib := training.serving(gate)) is not None:
        return training.geglu(lib, gate, up)
    return F.gelu(gate, approximate="tanh") * up


class GatedMLP(nn.Module):
    """down(gelu_tanh(gate(x)) · up(x)), D → F → D."""

    def __init__(self, hidden: int, intermediate: int):
        super().__init__()
        self.gate_proj = Linear(hidden, intermediate)
        self.up_proj = Linear(hidden, intermediate)
        self.down_proj = Linear(intermediate, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(geglu(self.gate_proj(x), self.up_proj(x)))


class SelfConditioning(nn.Module):
    """Mixes the soft embedding of the previous pass into the canvas: norm(embedding + mlp(norm(soft)))."""

    def __init__(self, hidden: int, intermediate: int, eps: float):
        super().__init__()
        self.pre_norm = RMSNorm(hidden, eps)
        self.gate_proj = Linear(hidden, intermediate)
        self.up_proj = Linear(hidden, intermediate)
        self.down_proj = Linear(intermediate, hidden)
        self.eps = eps

    def forward(self, embedded: Tensor, soft: Tensor) -> Tensor:
        normed = self.pre_norm.for_products(soft)
        signal = self.down_proj(geglu(self.gate_proj(normed), self.up_proj(normed)))
        return rms_norm(embedded + signal, None, self.eps)  # the last norm has no weight

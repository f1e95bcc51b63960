"""The operations of mixed-precision training with native kernels, forward and backward (chains.py, experts.py).

The residual is float32, what goes into products and comes out of them bfloat16, as under autocast in bfloat16, which is
on around it and serves what has no kernel.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from scumble.ops.cpu.training import chains, experts
from scumble.ops.cpu.training.products import outer, product
from scumble.ops.training import TrainingOps

NARROW = torch.bfloat16


class CpuTraining(TrainingOps):
    """The methods of `TrainingOps`."""

    name = "cpu"

    def __init__(self, lib: ctypes.CDLL):
        self.lib = lib

    def rms_norm(self, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        return chains.norm(self.lib, x, weight, eps, x.dtype)

    def norm_for_products(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return chains.norm(self.lib, x, weight, eps, NARROW)

    def router_norm(self, h: Tensor, factor: Tensor, eps: float) -> Tensor:
        return chains.norm(self.lib, h, factor, eps, torch.float32)

    def norm_rope(self, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        return chains.norm_rope(self.lib, x, weight, cos, sin, eps)

    def geglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return chains.geglu(self.lib, gate, up)

    def add_norm(self, x: Tensor, y: Tensor, weight: Tensor, eps: float, scale: Tensor | None = None) -> Tensor:
        return chains.add_norm(self.lib, x, y, weight, eps, scale)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return chains.linear(x, weight)

    def experts(self, x: Tensor, weights: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        return experts.experts(self.lib, x, weights, chosen, gate_up, down)

    def attend_batch(self, queries: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
        return chains.attention(self.lib, queries, keys, values, window)

    def head_loss(
        self,
        rows: Tensor,
        matrix: Tensor,
        wanted: Tensor,
        weights: Tensor,
        cap: float,
        to_rows: Tensor,
        to_matrix: Tensor,
    ) -> Tensor:
        if not 0 < cap <= chains.LARGEST_CAP:
            return super().head_loss(rows, matrix, wanted, weights, cap, to_rows, to_matrix)
        grad = rows.new_empty(rows.shape[0], matrix.shape[0])
        product(rows, matrix.T, grad)
        losses = chains.cross_entropy(self.lib, grad, wanted, weights, cap)  # the logits are now their gradient
        product(grad, matrix, to_rows)
        gradient = torch.empty_like(to_matrix)
        outer(grad, rows, gradient)
        to_matrix += gradient
        return (losses * weights).sum(dtype=torch.float64)

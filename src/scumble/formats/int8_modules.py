"""Linear layer and experts with int8 weights and dynamic int8 activations; they take the places of the float ones.

Their weights are no parameters and not in the state_dict: a quantized model runs, it is not trained or saved.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scumble.formats import int8
from scumble.formats.int8 import Int8Matrix
from scumble.ops import REFERENCE

HALF = 32  # gate columns and up columns that share a panel, as in cpu/experts.cpp


class Int8Linear(nn.Module):
    """x [N, in] -> [N, out]."""

    def __init__(self, weight: Tensor, packed: bool | None = None):
        super().__init__()
        self.matrix = Int8Matrix(weight, packed=packed)

    def forward(self, x: Tensor) -> Tensor:
        return self.matrix(x)


class Int8Experts(nn.Module):
    """E gated MLPs. Made from gate_up [E, 2F, D] (gate first) and down [E, D, F]."""

    def __init__(self, gate_up: Tensor, down: Tensor, packed: bool | None = None):
        super().__init__()
        self.count, self.hidden, self.width = down.shape
        if self.hidden % 4 or self.width % 4:
            packed = False
        q, scale = int8.quantize(gate_up)
        down_q, down_scale = int8.quantize(down)
        if packed is not False and int8.library() is not None:
            q, scale = interleave(q), interleave(scale)
            down_q, down_scale = pad(down_q, int8.PANEL), pad(down_scale, int8.PANEL)
        self.up = Int8Matrix(q.flatten(0, 1), scale.flatten(), packed)
        self.down = Int8Matrix(down_q.flatten(0, 1), down_scale.flatten(), packed)

    def forward(self, x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        """x [N, D], weights and experts [N, k] -> weighted sum of the chosen experts' outputs [N, D]."""
        if self.up.lib is not None:
            narrow = x.bfloat16().contiguous()
            out = int8.experts(self.up.lib, narrow, weights, experts, self.up, self.down, self.count)
            return out.to(x.dtype)
        k = experts.shape[1]
        slots = torch.empty(x.shape[0] * k, self.hidden)
        q, scale = self.up.rounded(x)
        for expert in experts.unique().tolist():
            rows = (experts.flatten() == expert).nonzero()[:, 0]
            token = rows // k
            both = self._product(self.up, q[token], scale[token], expert, 2 * self.width)
            h = REFERENCE.geglu(*both.chunk(2, dim=-1))
            slots[rows] = self._product(self.down, *self.down.rounded(h), expert, self.hidden).bfloat16().float()
        return (slots.view(-1, k, self.hidden) * weights[:, :, None]).sum(1).to(x.dtype)

    @staticmethod
    def _product(matrix: Int8Matrix, q: Tensor, scale: Tensor, expert: int, rows: int) -> Tensor:
        """With one expert's rows of a plain matrix, float32 (the kernel does not round between its two products)."""
        assert matrix.weight is not None
        part = slice(expert * rows, (expert + 1) * rows)
        return int8.integer_product(q, matrix.weight[part]) * (matrix.scale[part] * scale[:, None])


def pad(x: Tensor, multiple: int) -> Tensor:
    """Zeros behind axis 1, up to a multiple."""
    missing = -x.shape[1] % multiple
    return x if not missing else torch.cat((x, x.new_zeros(x.shape[0], missing, *x.shape[2:])), dim=1)


def interleave(x: Tensor) -> Tensor:
    """[E, 2F, …], gate first -> [E, 2F rounded up, …] in runs of 32 gate rows and their 32 up rows."""
    gate, up = (pad(half, HALF) for half in x.chunk(2, dim=1))
    runs = torch.stack((gate.unflatten(1, (-1, HALF)), up.unflatten(1, (-1, HALF))), dim=2)
    return runs.flatten(1, 3)

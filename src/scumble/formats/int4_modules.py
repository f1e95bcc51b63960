"""Linear layer and experts with four-bit weights, unpacked one matrix at a time; activations stay in bfloat16.

Their weights are no parameters and not in the state_dict: a quantized model runs, it is not trained or saved.
"""

from __future__ import annotations

from torch import Tensor, nn

from scumble.formats.int4 import Int4Matrix
from scumble.ops import ReferenceOps


class Int4Linear(nn.Module):
    """x [N, in] -> [N, out]."""

    def __init__(self, weight: Tensor, ops: ReferenceOps):
        super().__init__()
        self.matrix, self.ops = Int4Matrix(weight), ops

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.linear(x, self.matrix())


class Int4Experts(nn.Module):
    """E gated MLPs. Made from gate_up [E, 2F, D] (gate first) and down [E, D, F]."""

    def __init__(self, gate_up: Tensor, down: Tensor, ops: ReferenceOps):
        super().__init__()
        self.up, self.down = Int4Matrix(gate_up), Int4Matrix(down)
        self.count, self.ops = gate_up.shape[0], ops

    def forward(self, x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        """x [N, D], weights and experts [N, k] -> weighted sum of the chosen experts' outputs [N, D]."""
        return self.ops.grouped(x, weights, experts, self.count, lambda expert: (self.up(expert), self.down(expert)))

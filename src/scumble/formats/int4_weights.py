"""Weights in four bits, unpacked one matrix at a time; activations stay in bfloat16."""

from __future__ import annotations

from torch import Tensor

from scumble.formats.int4 import Int4Matrix
from scumble.formats.weight import ExpertWeights, Weight
from scumble.ops import Ops


class Int4Weight(Weight):
    format = "int4"

    def __init__(self, weight: Tensor | Int4Matrix, ops: Ops):
        super().__init__()
        self.matrix, self.ops = weight if isinstance(weight, Int4Matrix) else Int4Matrix(weight), ops

    @classmethod
    def from_state(cls, state: dict[str, Tensor], ops: Ops) -> Int4Weight:
        return cls(Int4Matrix.of(state["packed"], state["scale"], int(state["size"])), ops)

    def state(self) -> dict[str, Tensor]:
        return self.matrix.state()

    def product(self, x: Tensor) -> Tensor:
        return self.ops.linear(x, self.matrix())

    def rows(self, ids: Tensor) -> Tensor:
        return self.matrix(ids)

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes


class Int4Experts(ExpertWeights):
    format = "int4"

    def __init__(self, gate_up: Tensor | Int4Matrix, down: Tensor | Int4Matrix, ops: Ops):
        super().__init__()
        self.up = gate_up if isinstance(gate_up, Int4Matrix) else Int4Matrix(gate_up)
        self.down = down if isinstance(down, Int4Matrix) else Int4Matrix(down)
        self.ops = ops

    @classmethod
    def from_state(cls, state: dict[str, Tensor], ops: Ops) -> Int4Experts:
        parts = [
            Int4Matrix.of(state[f"{name}.packed"], state[f"{name}.scale"], int(state[f"{name}.size"]))
            for name in ("gate_up_proj", "down_proj")
        ]
        return cls(parts[0], parts[1], ops)

    def state(self) -> dict[str, Tensor]:
        both = {"gate_up_proj": self.up, "down_proj": self.down}
        return {f"{name}.{key}": tensor for name, one in both.items() for key, tensor in one.state().items()}

    def mix(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        count = self.up.packed.shape[0]
        return self.ops.grouped(x, weights, chosen, count, lambda expert: (self.up(expert), self.down(expert)))

    @property
    def nbytes(self) -> int:
        return self.up.nbytes + self.down.nbytes

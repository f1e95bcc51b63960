"""Weights in four bits with int8 activations, one scale a token; products read them as checkpoints store them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from scumble.formats import int8
from scumble.formats.int4 import Int4ExpertMatrices, Int4Matrix, quantize
from scumble.formats.weight import Addresses, ExpertWeights, Weight
from scumble.ops import REFERENCE, Ops


class Int4Weight(Weight):
    format = "int4"

    def __init__(self, weight: Tensor | Int4Matrix, ops: Ops):
        super().__init__()
        self.matrix, self.ops = weight if isinstance(weight, Int4Matrix) else quantize(weight), ops

    @classmethod
    def from_state(cls, state: dict[str, Tensor], ops: Ops) -> Int4Weight:
        return cls(Int4Matrix.of(state), ops)

    def state(self) -> dict[str, Tensor]:
        return self.matrix.state()

    def product(self, x: Tensor) -> Tensor:
        return self.matrix.product(x, native=self.ops.name == "cpu")

    def rows(self, ids: Tensor) -> Tensor:
        return self.matrix.chosen(ids).numbers().bfloat16()

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes

    def addresses(self) -> Addresses | None:
        return (None, None, None, ctypes.addressof(self.matrix.native)) if self.matrix.has_kernel() else None


class Int4Experts(ExpertWeights):
    format = "int4"

    def __init__(self, gate_up: Tensor, down: Tensor, ops: Ops):
        """In float, rounded to the nearest; `of` takes what is in four bits already."""
        half = gate_up.shape[1] // 2
        both = [quantize(one) for one in gate_up]
        gate, up = [one.part(0, half) for one in both], [one.part(half, 2 * half) for one in both]
        self._build(gate, up, [quantize(one) for one in down], ops)

    def _build(
        self, gate: Sequence[Int4Matrix], up: Sequence[Int4Matrix], down: Sequence[Int4Matrix], ops: Ops
    ) -> None:
        super().__init__()
        self.matrices, self.ops = Int4ExpertMatrices(gate, up, down), ops

    @classmethod
    def of(
        cls, gate: Sequence[Int4Matrix], up: Sequence[Int4Matrix], down: Sequence[Int4Matrix], ops: Ops
    ) -> Int4Experts:
        """gate and up [F, D], down [D, F], one of each an expert."""
        made = cls.__new__(cls)
        made._build(gate, up, down, ops)
        return made

    @classmethod
    def from_state(cls, state: dict[str, Tensor], ops: Ops) -> Int4Experts:
        parts: dict[str, list[Int4Matrix]] = {"gate": [], "up": [], "down": []}
        for name, matrices in parts.items():
            prefix = f"{name}_proj."
            count = state[f"{prefix}packed"].shape[0]
            for expert in range(count):
                own = {key.removeprefix(prefix): one for key, one in state.items() if key.startswith(prefix)}
                matrices.append(Int4Matrix.of({key: one[expert] for key, one in own.items()}))
        return cls.of(parts["gate"], parts["up"], parts["down"], ops)

    def state(self) -> dict[str, Tensor]:
        parts = {"gate": self.matrices.gate, "up": self.matrices.up, "down": self.matrices.down}
        states = {name: [one.state() for one in matrices] for name, matrices in parts.items()}
        return {
            f"{name}_proj.{key}": torch.stack([one[key] for one in each])
            for name, each in states.items()
            for key in each[0]
        }

    def mix(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        matrices = self.matrices
        if self.ops.name == "cpu" and matrices.serves:
            return matrices(x.bfloat16(), weights, chosen).to(x.dtype)
        k, slots = chosen.shape[1], torch.empty(chosen.numel(), x.shape[1])
        for expert in chosen.unique().tolist():
            rows = (chosen.flatten() == expert).nonzero()[:, 0]
            token = x[rows // k]
            gate, up, down = (each[expert] for each in (matrices.gate, matrices.up, matrices.down))
            h = REFERENCE.geglu(_wide(gate, token), _wide(up, token))
            slots[rows] = _wide(down, h).bfloat16().float()
        return (slots.view(-1, k, x.shape[1]) * weights[:, :, None]).sum(1).to(x.dtype)

    @property
    def nbytes(self) -> int:
        return self.matrices.nbytes

    def addresses(self) -> tuple[Addresses, Addresses] | None:
        native = self.matrices.native
        none = (None, None, None, None)
        return None if native is None else ((None, None, None, ctypes.addressof(native)), none)


def _wide(matrix: Int4Matrix, x: Tensor) -> Tensor:
    """A product in float32: the kernel does not round between its two products."""
    q, scale = int8.quantize(x)
    return q.float() @ matrix.numbers().T * scale[:, None]

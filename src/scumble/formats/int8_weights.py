"""Weights in int8, one scale an output channel, with dynamic int8 activations, one scale a token."""

from __future__ import annotations

import torch
from torch import Tensor

from scumble.formats import int8
from scumble.formats.int8 import Int8Matrix
from scumble.formats.weight import Addresses, ExpertWeights, Weight
from scumble.ops import REFERENCE, Ops

HALF = 32  # gate columns and up columns that share a panel, as in ops/cpu/src/experts.cpp


def packs(ops: Ops) -> bool:
    return ops.name == "cpu"


class Int8Weight(Weight):
    format = "int8"

    def __init__(self, weight: Tensor, ops: Ops, scale: Tensor | None = None):
        """weight [out, in] in float; or in int8, with its scale [out]."""
        super().__init__()
        self.ops, self.matrix = ops, Int8Matrix(weight, scale, packed=None if packs(ops) else False)

    @classmethod
    def from_state(cls, state: dict[str, Tensor], ops: Ops) -> Int8Weight:
        return cls(state["weight"], ops, state["scale"])

    def state(self) -> dict[str, Tensor]:
        numbers, scale = self.matrix.plain()
        return {"weight": numbers, "scale": scale}

    def product(self, x: Tensor) -> Tensor:
        return self.matrix(x)

    def rows(self, ids: Tensor) -> Tensor:
        numbers, scale = self.matrix.plain()
        return (numbers[ids].float() * scale[ids, None]).bfloat16()

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes

    def addresses(self) -> Addresses | None:
        return None if self.matrix.lib is None else (*self.matrix.base, None)


class Int8Experts(ExpertWeights):
    format = "int8"

    def __init__(
        self, gate_up: Tensor, down: Tensor, ops: Ops, up_scale: Tensor | None = None, down_scale: Tensor | None = None
    ):
        """In float; or in int8, with scales [E, 2F] and [E, D]."""
        super().__init__()
        self.ops = ops
        self.count, self.hidden, self.width = down.shape
        if up_scale is None or down_scale is None:
            (gate_up, up_scale), (down, down_scale) = int8.quantize(gate_up), int8.quantize(down)
        self.packed = packs(ops) and self.hidden % 4 == 0 and self.width % 4 == 0
        if self.packed:
            gate_up, up_scale = interleave(gate_up), interleave(up_scale)
            down, down_scale = pad(down, int8.PANEL), pad(down_scale, int8.PANEL)
        packed = None if self.packed else False
        self.up = Int8Matrix(gate_up.flatten(0, 1), up_scale.flatten(), packed)
        self.down = Int8Matrix(down.flatten(0, 1), down_scale.flatten(), packed)

    @classmethod
    def from_state(cls, state: dict[str, Tensor], ops: Ops) -> Int8Experts:
        return cls(
            state["gate_up_proj"], state["down_proj"], ops, state["gate_up_proj.scale"], state["down_proj.scale"]
        )

    def state(self) -> dict[str, Tensor]:
        (up, up_scale), (down, down_scale) = (
            [part.unflatten(0, (self.count, -1)) for part in one.plain()] for one in (self.up, self.down)
        )
        if self.packed:
            up, up_scale = (apart(part, self.width) for part in (up, up_scale))
            down, down_scale = (part[:, : self.hidden].contiguous() for part in (down, down_scale))
        return {
            "gate_up_proj": up, "gate_up_proj.scale": up_scale, "down_proj": down, "down_proj.scale": down_scale,
        }  # fmt: skip

    def mix(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        if self.up.lib is not None:
            narrow = x.bfloat16().contiguous()
            return int8.experts(self.up.lib, narrow, weights, chosen, self.up, self.down, self.count).to(x.dtype)
        k = chosen.shape[1]
        slots = torch.empty(x.shape[0] * k, self.hidden)
        q, scale = self.up.rounded(x)
        for expert in chosen.unique().tolist():
            rows = (chosen.flatten() == expert).nonzero()[:, 0]
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

    @property
    def nbytes(self) -> int:
        return self.up.nbytes + self.down.nbytes

    def addresses(self) -> tuple[Addresses, Addresses] | None:
        return None if self.up.lib is None else ((*self.up.base, None), (*self.down.base, None))


def pad(x: Tensor, multiple: int) -> Tensor:
    """Zeros behind axis 1, up to a multiple."""
    missing = -x.shape[1] % multiple
    return x if not missing else torch.cat((x, x.new_zeros(x.shape[0], missing, *x.shape[2:])), dim=1)


def interleave(x: Tensor) -> Tensor:
    """[E, 2F, …], gate first -> [E, 2F rounded up, …] in runs of 32 gate rows and their 32 up rows."""
    gate, up = (pad(half, HALF) for half in x.chunk(2, dim=1))
    runs = torch.stack((gate.unflatten(1, (-1, HALF)), up.unflatten(1, (-1, HALF))), dim=2)
    return runs.flatten(1, 3)


def apart(x: Tensor, width: int) -> Tensor:
    """What `interleave` gave -> [E, 2F, …], F = width."""
    runs = x.unflatten(1, (-1, 2, HALF))
    return torch.cat([runs[:, :, half].flatten(1, 2)[:, :width] for half in (0, 1)], dim=1)

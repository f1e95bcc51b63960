"""Weights in few bits for operations that lay them out by themselves (`Ops.formats`): a graphics card's.

They are made once at load and stay as they are: what they hold cannot be trained, saved, or moved to another device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scumble.formats.int4 import Int4Matrix
from scumble.formats.weight import ExpertWeights, Weight
from scumble.ops import Ops


class CardWeight(Weight):
    """packed: what `Ops.pack` or `Ops.pack_stored` made."""

    def __init__(self, packed: Any, form: str, ops: Ops):
        super().__init__()
        self.packed, self.format, self.ops = packed, form, ops  # type: ignore[misc]

    def state(self) -> dict[str, Tensor]:
        return self.packed.tensors

    def product(self, x: Tensor) -> Tensor:
        return self.packed(x)

    def laid_out(self) -> Any:
        return self.packed

    def rows(self, ids: Tensor) -> Tensor:
        return self.packed.plain()[ids]

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes


class CardExperts(ExpertWeights):
    """packed: what `Ops.pack_experts` or `Ops.pack_stored_experts` made."""

    def __init__(self, packed: Any, form: str, ops: Ops):
        super().__init__()
        self.packed, self.format, self.ops = packed, form, ops  # type: ignore[misc]

    def state(self) -> dict[str, Tensor]:
        return self.packed.tensors

    def mix(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        return self.packed(x, weights, chosen)

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes


def moved(state: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A matrix's stored tensors there; the shape stays with the host, which reads it."""
    return {name: part if name == "shape" else part.to(device) for name, part in state.items()}


def together(columns: Sequence[Sequence[Int4Matrix]], device: torch.device) -> dict[str, Tensor]:
    """Matrices of E experts as one state [E, rows, …] on the device; columns: what lies below what in an expert's rows,
    such as its gate and its up. Every piece is copied straight from where it is mapped.

    Raises ValueError where the matrices differ in kind."""
    states = [[_by_rows(one) for one in column] for column in columns]
    first, count = states[0][0], len(columns[0])
    kinds = {
        (str(one["shape"].tolist()), *((name, part.dtype, part.shape[1:]) for name, part in one.items()))
        for column in states
        for one in column
    }
    if len(kinds) != 1:
        raise ValueError("the matrices of the experts are of several kinds")
    height = sum(column[0].rows for column in columns)
    out = {"shape": first["shape"]}
    for name, part in first.items():
        if name == "shape":
            continue
        out[name] = torch.empty(count, height, *part.shape[1:], dtype=part.dtype, device=device)
        begin = 0
        for column in states:
            end = begin + column[0][name].shape[0]
            for expert, one in enumerate(column):
                out[name][expert, begin:end].copy_(one[name])
            begin = end
    return out


def _by_rows(matrix: Int4Matrix) -> dict[str, Tensor]:
    """Its state, with a factor for every row: gate and up may have factors of their own."""
    state = matrix.state()
    if "factor" in state:
        state["factor"] = state["factor"].expand(matrix.rows)
    return state

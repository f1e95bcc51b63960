"""Weights of a format, from float tensors: what loading and `Transformer.convert` make layers of."""

from __future__ import annotations

from torch import Tensor

from scumble.formats import Format
from scumble.formats.floats import FloatExperts, FloatWeight, PackedExperts, PackedWeight
from scumble.formats.int4_weights import Int4Experts, Int4Weight
from scumble.formats.int8_embedding import Int8Embedding
from scumble.formats.int8_weights import Int8Experts, Int8Weight, packs
from scumble.formats.weight import ExpertWeights, Table, Weight
from scumble.ops import Ops

WEIGHTS = {"int8": (Int8Weight, Int8Experts), "int4": (Int4Weight, Int4Experts)}
"""By format; both are made of float tensors and operations, and have `state` and `from_state`."""


def classes(form: Format | None, ops: Ops) -> tuple[type[Weight], type[ExpertWeights]]:
    if form is None:
        return (PackedWeight, PackedExperts) if ops.packs else (FloatWeight, FloatExperts)
    return WEIGHTS[form]


def weight(tensor: Tensor, form: Format | None, ops: Ops) -> Weight:
    """form None: the tensor's own, laid out as the operations read it."""
    return classes(form, ops)[0](tensor, ops)  # type: ignore[call-arg]


def experts(gate_up: Tensor, down: Tensor, form: Format | None, ops: Ops) -> ExpertWeights:
    return classes(form, ops)[1](gate_up, down, ops)  # type: ignore[call-arg]


def add_head(table: Table, form: Format | None) -> None:
    """Give the table what its logits are made with. int8, int4: in int8; else, where the operations pack, packed."""
    if form is not None:
        table.head = Int8Embedding(table.weight, packed=None if packs(table.ops) else False)
    elif table.ops.packs:
        table.head = table.ops.pack(table.weight)

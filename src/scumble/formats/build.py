"""Weights of a format, from float tensors: what loading and `Transformer.convert` make layers of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scumble.errors import InvalidRequest
from scumble.formats import Format
from scumble.formats.floats import FloatExperts, FloatWeight, PackedExperts, PackedWeight
from scumble.formats.int4 import Int4Matrix
from scumble.formats.int4_weights import Int4Experts, Int4Weight
from scumble.formats.int8_embedding import Int8Embedding
from scumble.formats.int8_weights import Int8Experts, Int8Weight, packs
from scumble.formats.on_card import CardExperts, CardWeight, moved, together
from scumble.formats.weight import ExpertWeights, Table, Weight
from scumble.ops import Ops

WEIGHTS = {"int8": (Int8Weight, Int8Experts), "int4": (Int4Weight, Int4Experts)}
"""By format; both are made of float tensors and operations, and have `state` and `from_state`."""


def check(form: Format | None, ops: Ops, device: torch.device) -> None:
    """Raises InvalidRequest where weights cannot be in a format with these operations on this device."""
    here = ops.formats or (frozenset(WEIGHTS) if device.type == "cpu" else frozenset())
    if form is not None and form not in here:
        others = "".join(f", {one}" for one in sorted(here))
        raise InvalidRequest(
            f"dtype {form} cannot run on {device} with the {ops.name} operations; there: float32, bfloat16{others}"
        )


def weight(tensor: Tensor, form: Format | None, ops: Ops) -> Weight:
    """form None: the tensor's own, laid out as the operations read it."""
    if form is None:
        return PackedWeight(tensor, ops) if ops.packs else FloatWeight(tensor, ops)
    if form in ops.formats:
        return CardWeight(ops.pack(tensor, form), form, ops)
    return WEIGHTS[form][0](tensor, ops)


def experts(gate_up: Tensor, down: Tensor, form: Format | None, ops: Ops) -> ExpertWeights:
    if form is None:
        return PackedExperts(gate_up, down, ops) if ops.packs else FloatExperts(gate_up, down, ops)
    if form in ops.formats:
        return CardExperts(ops.pack_experts(gate_up, down, form), form, ops)
    return WEIGHTS[form][1](gate_up, down, ops)


# --- what a checkpoint stores in few bits: the same numbers ----------------------------------------------------------


def four_bits(matrix: Int4Matrix, ops: Ops, device: torch.device) -> Weight:
    """Raises ValueError where the device's products take no such groups of numbers."""
    if "int4" in ops.formats:
        return CardWeight(ops.pack_stored("int4", moved(matrix.state(), device)), "int4", ops)
    return Int4Weight(matrix, ops)


def four_bit_experts(
    gates: Sequence[Int4Matrix], ups: Sequence[Int4Matrix], downs: Sequence[Int4Matrix], ops: Ops, device: torch.device
) -> ExpertWeights:
    """gate and up [F, D], down [D, F], one of each an expert. Raises as `four_bits`."""
    if "int4" in ops.formats:
        packed = ops.pack_stored_experts("int4", together((gates, ups), device), together((downs,), device))
        return CardExperts(packed, "int4", ops)
    return Int4Experts.of(gates, ups, downs, ops)


def eight_bits(numbers: Tensor, scale: Tensor, ops: Ops, device: torch.device) -> Weight:
    """numbers [out, in] int8 or, where the operations take it, float8; scale [out]."""
    form = "int8" if numbers.dtype is torch.int8 else "fp8"
    if form in ops.formats:
        return CardWeight(ops.pack_stored(form, moved({"weight": numbers, "scale": scale}, device)), form, ops)
    return Int8Weight(numbers, ops, scale)


def eight_bit_experts(
    up: tuple[Tensor, Tensor], down: tuple[Tensor, Tensor], ops: Ops, device: torch.device
) -> ExpertWeights:
    """Of each: numbers [E, out, in] and scales [E, out]."""
    form = "int8" if up[0].dtype is torch.int8 else "fp8"
    if form in ops.formats:
        states = [moved({"weight": numbers, "scale": scale}, device) for numbers, scale in (up, down)]
        return CardExperts(ops.pack_stored_experts(form, *states), form, ops)
    return Int8Experts(up[0], down[0], ops, up[1], down[1])


def add_head(table: Table, form: Format | None) -> None:
    """Give the table what its logits are made with. int8, int4: in int8; else, where the operations pack, packed. A
    card's operations read the table itself."""
    if form is not None and form not in table.ops.formats:
        table.head = Int8Embedding(table.weight, packed=None if packs(table.ops) else False)
    elif table.ops.packs:
        table.head = table.ops.pack(table.weight)

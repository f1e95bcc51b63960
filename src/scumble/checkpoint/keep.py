"""Weights that a folder holds in few bits, put into a model as they are: no rounding anew, and mapped where they lie as
products take them.

    stored                                              runs as
    int4, GPTQ, AWQ, NVFP4; ggml's Q4_0, Q4_1, Q4_K     four bits, the same numbers
    int8, one scale a channel or tensor                 int8, the same numbers
    fp8; int8 in groups or with zero points; ggml's others  int8, rounded anew: one scale a channel
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from scumble.checkpoint.files import DTYPES, Stored
from scumble.checkpoint.gguf.four_bits import ggml_four_bits
from scumble.checkpoint.schemes import Entry, read_entry
from scumble.checkpoint.schemes.assemble import FusedExperts, StackedExperts
from scumble.checkpoint.schemes.module import StoredModule
from scumble.formats import Format
from scumble.formats.floats import FloatExperts, FloatWeight
from scumble.formats.int4 import Int4Matrix
from scumble.formats.int4_weights import Int4Experts, Int4Weight
from scumble.formats.int8_weights import Int8Experts, Int8Weight
from scumble.ops import Ops

CPU = torch.device("cpu")


def is_in_few_bits(entry: Entry) -> bool:
    match entry:
        case Stored():
            return entry.dtype not in DTYPES
        case StackedExperts():
            return entry.gate.dtype not in DTYPES
        case FusedExperts():
            return any(is_in_few_bits(part) for one in entry.parts for part in one)
    return True


def keep(part: nn.Module, entries: Mapping[str, Entry], ops: Ops, form: Format | None, seen: Counter[str]) -> set[str]:
    """Replace the linear layers and experts of `part` whose weights are in few bits; returns the names that served.

    entries: by the weights' names inside the part. form: only what is in this format exactly; None: everything.
    seen: counts of "what it is stored as → what it runs as" are added.
    """
    done: set[str] = set()
    for path, module in list(part.named_modules()):
        owner, _, name = path.rpartition(".")
        if isinstance(module, FloatWeight) and is_in_few_bits(entry := entries[f"{path}.weight"]):
            new = _linear(entry, ops, form, seen)
            if new is not None:
                setattr(part.get_submodule(owner), name, new)
                done.add(f"{path}.weight")
        if isinstance(module, FloatExperts):
            names = [f"{path}.gate_up_proj", f"{path}.down_proj"]
            if all(is_in_few_bits(entries[one]) for one in names):
                new = _experts(entries[names[0]], entries[names[1]], ops, form, seen)
                if new is not None:
                    setattr(part.get_submodule(owner), name, new)
                    done.update(names)
    return done


def _linear(entry: Entry, ops: Ops, form: Format | None, seen: Counter[str]) -> nn.Module | None:
    if form != "int8" and (matrix := _four_bits(entry)) is not None:
        seen[f"{entry.dtype} → four bits, the same numbers"] += 1
        return Int4Weight(matrix, ops)
    if form == "int4":
        return None
    if isinstance(entry, StoredModule) and (exact := entry.eight_bits()) is not None:
        seen[f"{entry.dtype} → int8, the same numbers"] += 1
        return Int8Weight(exact[0], ops, exact[1])
    if form is not None:
        return None
    seen[f"{entry.dtype} → int8, rounded anew"] += 1
    return Int8Weight(read_entry(entry, torch.bfloat16, CPU), ops)


def _experts(up: Entry, down: Entry, ops: Ops, form: Format | None, seen: Counter[str]) -> nn.Module | None:
    if form != "int8":
        gates, ups, downs = _four_bit_experts(up, down)
        if gates:
            seen[f"{up.dtype} → four bits, the same numbers"] += len(gates) + len(ups) + len(downs)
            return Int4Experts.of(gates, ups, downs, ops)
    if form == "int4":
        return None
    exact = _eight_bit_experts(up), _eight_bit_experts(down)
    if exact[0] is not None and exact[1] is not None:
        seen[f"{up.dtype} → int8, the same numbers"] += 3 * len(exact[0][0])
        return Int8Experts(exact[0][0], exact[1][0], ops, exact[0][1], exact[1][1])
    if form is not None:
        return None
    seen[f"{up.dtype}, {down.dtype} → int8, rounded anew"] += 3 * up.shape[0]
    return Int8Experts(read_entry(up, torch.bfloat16, CPU), read_entry(down, torch.bfloat16, CPU), ops)


def _four_bits(entry: Entry) -> Int4Matrix | None:
    if isinstance(entry, StoredModule):
        return entry.four_bits()
    return ggml_four_bits(entry)[0] if isinstance(entry, Stored) and len(entry.shape) == 2 else None


def _four_bit_experts(up: Entry, down: Entry) -> tuple[list[Int4Matrix], list[Int4Matrix], list[Int4Matrix]]:
    """Gate, up and down of every expert; empty where one cannot be had."""
    nothing: tuple[list[Int4Matrix], list[Int4Matrix], list[Int4Matrix]] = ([], [], [])
    if isinstance(up, FusedExperts) and isinstance(down, FusedExperts):
        columns = [[_four_bits(part) for part in each] for each in zip(*up.parts, strict=True)]
        columns.append([_four_bits(parts[0]) for parts in down.parts])
        if any(matrix is None for column in columns for matrix in column):
            return nothing
        gates, ups, downs = cast(list[list[Int4Matrix]], columns)
        return gates, ups, downs
    downs = ggml_four_bits(down) if isinstance(down, Stored) else []
    if isinstance(up, StackedExperts):
        gates, ups = ggml_four_bits(up.gate), ggml_four_bits(up.up)
    else:
        both = ggml_four_bits(up) if isinstance(up, Stored) else []
        half = up.shape[1] // 2
        gates, ups = [one.part(0, half) for one in both if one], [one.part(half, 2 * half) for one in both if one]
    if not gates or any(one is None for one in (*gates, *ups, *downs)) or len(downs) != len(gates):
        return nothing
    return cast(tuple[list[Int4Matrix], list[Int4Matrix], list[Int4Matrix]], (gates, ups, downs))


def _eight_bit_experts(entry: Entry) -> tuple[Tensor, Tensor] | None:
    """int8 [E, rows, columns] and scales [E, rows]; None where they are stored in another way."""
    if not isinstance(entry, FusedExperts):
        return None
    count, rows, columns = entry.shape
    numbers, scales = torch.empty(count, rows, columns, dtype=torch.int8), torch.empty(count, rows)
    for expert, parts in enumerate(entry.parts):
        begin = 0
        for part in parts:
            exact = part.eight_bits() if isinstance(part, StoredModule) else None
            if exact is None:
                return None
            end = begin + part.shape[0]
            numbers[expert, begin:end], scales[expert, begin:end] = exact
            begin = end
    return numbers, scales

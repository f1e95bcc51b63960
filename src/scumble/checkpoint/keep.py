"""Weights that a folder holds in few bits, put into a model as they are: no rounding anew, and mapped where they lie as
products take them.

    stored                                              runs as
    int4, GPTQ, AWQ, NVFP4; ggml's Q4_0, Q4_1, Q4_K     four bits, the same numbers
    int8, one scale a channel or tensor                 int8, the same numbers
    fp8; int8 in groups or with zero points; ggml's others  int8, rounded anew: one scale a channel

On a graphics card fp8 with one scale a channel or tensor runs as fp8, the same numbers, and what is rounded anew
becomes fp8 where the card has it; scales of four-bit groups without zero points are rounded to bfloat16 there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from scumble.checkpoint.files import DTYPES, Stored
from scumble.checkpoint.gguf.four_bits import ggml_four_bits
from scumble.checkpoint.schemes import Entry, read_entry
from scumble.checkpoint.schemes.assemble import FusedExperts, StackedExperts
from scumble.checkpoint.schemes.module import StoredModule
from scumble.formats import Format, build
from scumble.formats.floats import FloatExperts, FloatWeight
from scumble.formats.int4 import Int4Matrix
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


def in_four_bits(entry: Entry) -> bool:
    """Of what is in few bits: whether it runs in four, by what it is stored as."""
    return "4" in entry.dtype.split(",")[0]


@dataclass(frozen=True)
class Keeper:
    """How stored weights become a model's. form: only what is in this format exactly; None: everything.

    seen: counts of "what it is stored as → what it runs as" are added.
    """

    ops: Ops
    device: torch.device = CPU
    form: Format | None = None
    seen: Counter[str] = field(default_factory=Counter)

    def keep(self, part: nn.Module, entries: Mapping[str, Entry]) -> set[str]:
        """Replace the linear layers and experts of `part` whose weights are in few bits; returns the names that served.

        entries: by the weights' names inside the part.
        """
        done: set[str] = set()
        for path, module in list(part.named_modules()):
            owner, _, name = path.rpartition(".")
            if isinstance(module, FloatWeight) and is_in_few_bits(entry := entries[f"{path}.weight"]):
                new = self.linear(entry)
                if new is not None:
                    setattr(part.get_submodule(owner), name, new)
                    done.add(f"{path}.weight")
            if isinstance(module, FloatExperts):
                names = [f"{path}.gate_up_proj", f"{path}.down_proj"]
                if all(is_in_few_bits(entries[one]) for one in names):
                    new = self.experts(entries[names[0]], entries[names[1]])
                    if new is not None:
                        setattr(part.get_submodule(owner), name, new)
                        done.update(names)
        return done

    def wants(self, form: Format) -> bool:
        return self.form in (None, form)

    @property
    def anew(self) -> Format:
        """What is rounded to where no format holds a weight exactly."""
        return "fp8" if "fp8" in self.ops.formats else "int8"

    def linear(self, entry: Entry) -> nn.Module | None:
        if self.wants("int4") and (matrix := _four_bits(entry)) is not None:
            with suppress(ValueError):  # groups that a card's products do not take
                four = build.four_bits(matrix, self.ops, self.device)
                self.seen[f"{entry.dtype} → four bits, the same numbers"] += 1
                return four
        if isinstance(entry, StoredModule):
            kept: list[tuple[Format, tuple[Tensor, Tensor] | None]] = [
                ("int8", entry.eight_bits()), ("fp8", entry.float8() if "fp8" in self.ops.formats else None),
            ]  # fmt: skip
            for form, exact in kept:
                if exact is not None and self.wants(form):
                    self.seen[f"{entry.dtype} → {form}, the same numbers"] += 1
                    return build.eight_bits(*exact, self.ops, self.device)
        if self.form is not None:
            return None
        self.seen[f"{entry.dtype} → {self.anew}, rounded anew"] += 1
        return build.weight(read_entry(entry, torch.bfloat16, self.device), self.anew, self.ops)

    def experts(self, up: Entry, down: Entry) -> nn.Module | None:
        if self.wants("int4"):
            gates, ups, downs = _four_bit_experts(up, down)
            if gates:
                with suppress(ValueError):
                    kept = build.four_bit_experts(gates, ups, downs, self.ops, self.device)
                    self.seen[f"{up.dtype} → four bits, the same numbers"] += len(gates) + len(ups) + len(downs)
                    return kept
        forms: tuple[Format, ...] = ("int8", "fp8") if "fp8" in self.ops.formats else ("int8",)
        for form in forms:
            if self.wants(form):
                exact = _eight_bit_experts(up, form, self.device), _eight_bit_experts(down, form, self.device)
                if exact[0] is not None and exact[1] is not None:
                    self.seen[f"{up.dtype} → {form}, the same numbers"] += 3 * len(exact[0][0])
                    return build.eight_bit_experts(exact[0], exact[1], self.ops, self.device)
        if self.form is not None:
            return None
        self.seen[f"{up.dtype}, {down.dtype} → {self.anew}, rounded anew"] += 3 * up.shape[0]
        both = [read_entry(one, torch.bfloat16, self.device) for one in (up, down)]
        return build.experts(both[0], both[1], self.anew, self.ops)


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


def _eight_bit_experts(entry: Entry, form: Format, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """int8 or float8 [E, rows, columns] and scales [E, rows]; None where they are stored in another way."""
    if not isinstance(entry, FusedExperts):
        return None
    count, rows, columns = entry.shape
    kind = torch.int8 if form == "int8" else torch.float8_e4m3fn
    numbers = torch.empty(count, rows, columns, dtype=kind, device=device)
    scales = torch.empty(count, rows, device=device)
    for expert, parts in enumerate(entry.parts):
        begin = 0
        for part in parts:
            exact = None
            if isinstance(part, StoredModule):
                exact = part.eight_bits() if form == "int8" else part.float8()
            if exact is None:
                return None
            end = begin + part.shape[0]
            numbers[expert, begin:end], scales[expert, begin:end] = exact
            begin = end
    return numbers, scales

"""Canvases in flight: S of them as tensors [S, L], each with settings of its own.

A slot is one candidate of one row's canvas. Slots of unequal length are pinned behind their end (see
diffusion/canvas.py). Tensors are put together anew only when canvases join or leave, not from pass to pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from scumble.decode.constraint import Law
from scumble.decode.steps import Start
from scumble.diffusion import Address, Canvas, Proposal, SeededNoise
from scumble.engine.row import Row

T = TypeVar("T")


@dataclass(eq=False)
class Slot:
    """The host's side of one canvas. soft [length, D]: what a pass leaves for the next; None before the first."""

    row: Row
    candidate: int
    index: int
    start: Start
    pass_index: int = 0
    soft: Tensor | None = None
    place: int = -1  # which of the S it is at present
    is_done: bool = False
    error: Exception | None = None  # of its own noise or law

    def tried(self, call: Callable[[], T]) -> T | None:
        """What the request's own noise or law says; None after an error, which ends the request and nobody else's."""
        try:
            return call() if self.error is None else None
        except Exception as error:
            self.error = error
            return None

    @property
    def length(self) -> int:
        return self.start.canvas.ids.shape[1]

    @property
    def temperature(self) -> float:
        return self.row.request.schedule(self.pass_index)

    @property
    def law(self) -> Law | None:
        return self.start.restriction.law

    @property
    def is_greedy(self) -> bool:
        return self.row.request.config.temperature == 0

    @property
    def is_last_pass(self) -> bool:
        return self.pass_index + 1 == self.row.request.schedule.passes


@dataclass(eq=False)
class Slots:
    """S canvases side by side. canvas [S, L]; previous [S, L]: the last pass's argmax, -1 before the first;
    unchanged [S]: for how many passes it has stayed; pass_index [S]."""

    slots: list[Slot]
    canvas: Canvas
    previous: Tensor
    unchanged: Tensor
    pass_index: Tensor
    vocab: int

    def __post_init__(self) -> None:
        for place, slot in enumerate(self.slots):
            slot.place = place

    @classmethod
    def starting(cls, slots: Sequence[Slot], vocab: int, device: torch.device) -> Slots:
        """Canvases before their first pass."""
        length = max((slot.length for slot in slots), default=0)
        ids, pinned = torch.zeros(0, length, dtype=torch.int64), torch.ones(0, length, dtype=torch.bool)
        ids = torch.cat([ids, *(padded(slot.start.canvas.ids, length, 0) for slot in slots)]).to(device)
        pinned = torch.cat([pinned, *(padded(slot.start.canvas.pinned, length, True) for slot in slots)]).to(device)
        zeros = ids.new_zeros(len(slots))
        return cls(list(slots), Canvas(ids, pinned), torch.full_like(ids, -1), zeros, zeros, vocab)

    @classmethod
    def joined(cls, parts: Sequence[Slots]) -> Slots:
        """Several as one."""
        length = max(part.canvas.ids.shape[1] for part in parts)
        return cls(
            [slot for part in parts for slot in part.slots],
            Canvas(
                torch.cat([padded(part.canvas.ids, length, 0) for part in parts]),
                torch.cat([padded(part.canvas.pinned, length, True) for part in parts]),
            ),
            torch.cat([padded(part.previous, length, -1) for part in parts]),
            torch.cat([part.unchanged for part in parts]),
            torch.cat([part.pass_index for part in parts]),
            parts[0].vocab,
        )

    def taken(self, wanted: Callable[[Slot], bool]) -> Slots:
        """Those canvases alone."""
        places = [place for place, slot in enumerate(self.slots) if wanted(slot)]
        if len(places) == len(self.slots):
            return self
        taken = [self.slots[place] for place in places]
        length = max((slot.length for slot in taken), default=0)
        rows = torch.tensor(places, dtype=torch.int64, device=self.device)
        canvas = Canvas(self.canvas.ids[rows, :length], self.canvas.pinned[rows, :length])
        previous = self.previous[rows, :length]
        return Slots(taken, canvas, previous, self.unchanged[rows], self.pass_index[rows], self.vocab)

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def device(self) -> torch.device:
        return self.canvas.ids.device

    @property
    def tokens(self) -> int:
        return sum(slot.length for slot in self.slots)

    @cached_property
    def rules(self) -> Rules:
        return Rules(self)

    def ids(self, slot: Slot) -> Tensor:
        """What stands on one slot's canvas [length]."""
        return self.canvas.ids[slot.place, : slot.length]

    def move_on(self, canvas: Canvas, argmax: Tensor, unchanged: Tensor) -> None:
        """A pass is over."""
        self.canvas, self.previous, self.unchanged = canvas, argmax, unchanged
        self.pass_index = self.pass_index + 1
        for slot in self.slots:
            slot.pass_index += 1


class Rules:
    """The settings of S slots as tensors, and how their positions lie packed, one slot after another, N in all."""

    def __init__(self, slots: Slots):
        self.slots = slots
        device = slots.device
        requests = [slot.row.request for slot in slots.slots]
        lengths = [slot.length for slot in slots.slots]
        self.length = max(lengths, default=0)
        self.samplers = stacked([request.sampler for request in requests], device)
        self.stoppings = stacked([request.stopping for request in requests], device)
        self.passes = torch.tensor([request.schedule.passes for request in requests], device=device)
        self.is_greedy = torch.tensor([[request.config.temperature == 0] for request in requests], device=device)
        self.takes_sample = torch.tensor([[request.config.commit == "sample"] for request in requests], device=device)
        noises = [slot.start.noise for slot in slots.slots]
        seeded = [noise if type(noise) is SeededNoise else SeededNoise(0) for noise in noises]
        self.address = Address.of(seeded, [slot.index for slot in slots.slots], device) if noises else None
        self.given = [slot for slot in slots.slots if type(slot.start.noise) is not SeededNoise]
        self._is_even = len(set(lengths)) < 2
        ends = torch.tensor(lengths, dtype=torch.int64).cumsum(0)
        begins = ends - torch.tensor(lengths, dtype=torch.int64)
        place = torch.arange(self.length)
        inside = place < torch.tensor(lengths, dtype=torch.int64)[:, None]
        self._packed = inside.flatten().nonzero()[:, 0].to(device)  # [N] places in S · L
        self._padded = torch.where(inside, begins[:, None] + place, 0).to(device)  # [S, L] places in N

    def pack(self, values: Tensor) -> Tensor:
        """[S, L] -> [N]"""
        return values.flatten() if self._is_even else values.flatten()[self._packed]

    def pad(self, values: Tensor) -> Tensor:
        """[N] -> [S, L]; what stands behind the end of a short slot means nothing."""
        return values.view(len(self.slots), -1) if self._is_even else values[self._padded]

    def noise(self) -> tuple[Tensor, Tensor]:
        """Of this pass: uniforms [S, L] float64 and ids to renoise [S, L]; on the device, but for what is handed in."""
        assert self.address is not None
        uniforms, fresh = self.address.draw(self.slots.pass_index, self.length, self.slots.vocab)
        for slot in self.given:
            drawn = slot.tried(partial(self._given, slot))
            if drawn is not None:
                uniforms[slot.place, : slot.length], fresh[slot.place, : slot.length] = drawn
        return uniforms, fresh

    def _given(self, slot: Slot) -> tuple[Tensor, Tensor]:
        noise, at = slot.start.noise, (slot.index, slot.pass_index, slot.length)
        drawn = torch.as_tensor(noise.uniform(*at)), torch.as_tensor(noise.renoise(*at, self.slots.vocab))
        return drawn[0].to(self.slots.device), drawn[1].to(self.slots.device)

    def accept(self, proposal: Proposal) -> Tensor:
        return self._by_rule(self.samplers, lambda rule: rule.accept(self.slots.canvas, proposal))

    def done(self, proposal: Proposal, unchanged: Tensor) -> Tensor:
        return self._by_rule(self.stoppings, lambda rule: rule.done(self.slots.canvas, proposal, unchanged))

    def _by_rule(self, rules: Sequence[tuple[Any, Tensor]], call: Callable[[Any], Tensor]) -> Tensor:
        """Every slot's row of the result of its own kind of rule; nearly always there is one kind."""
        result = call(rules[0][0])
        for rule, mine in rules[1:]:
            other = call(rule)
            result = torch.where(mine.view(-1, *[1] * (other.ndim - 1)), other, result)
        return result


def stacked(rules: Sequence[Any], device: torch.device) -> list[tuple[Any, Tensor]]:
    """(one rule for all S slots, which of them it is for [S]), by kind of rule. Where a slot has another kind, the rule
    has the numbers of the first of its own kind there."""
    kinds = list(dict.fromkeys(type(rule) for rule in rules))
    out = []
    for kind in kinds:
        mine = [isinstance(rule, kind) for rule in rules]
        first = rules[mine.index(True)]
        own = [rule if is_mine else first for rule, is_mine in zip(rules, mine, strict=True)]
        out.append((kind.stacked(own, device), torch.tensor(mine, device=device)))
    return out


def padded(values: Tensor, length: int, value: int) -> Tensor:
    """[S, l ≤ length] -> [S, length]"""
    return values if values.shape[1] == length else F.pad(values, (0, length - values.shape[1]), value=value)

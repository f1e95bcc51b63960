"""Canvases in flight: S of them as tensors [S, L], each with settings of its own.

A slot is one candidate of one row's canvas. Slots of unequal length are pinned behind their end (see
diffusion/canvas.py). Tensors are put together anew only when a canvas joins or leaves, not from pass to pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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


class Slots:
    """canvas [S, L]; previous [S, L]: the last pass's argmax, -1 before the first; unchanged [S]: for how many passes
    it has stayed; pass_index [S]."""

    def __init__(self, vocab: int, device: torch.device):
        self.vocab = vocab
        self.device = device
        self.slots: list[Slot] = []
        nothing = torch.zeros(0, 0, dtype=torch.int64, device=device)
        self.canvas = Canvas(nothing, nothing.bool())
        self.previous = nothing
        self.unchanged = self.pass_index = nothing[:, :0].sum(-1)
        self.rules = Rules(self)

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def tokens(self) -> int:
        return sum(slot.length for slot in self.slots)

    def join(self, slots: Sequence[Slot]) -> None:
        length = max(slot.length for slot in [*self.slots, *slots])
        canvases = [slot.start.canvas for slot in slots]
        ids = [padded(self.canvas.ids, length, 0), *(padded(one.ids.to(self.device), length, 0) for one in canvases)]
        pins = [
            padded(self.canvas.pinned, length, True),
            *(padded(one.pinned.to(self.device), length, True) for one in canvases),
        ]
        self.canvas = Canvas(torch.cat(ids), torch.cat(pins))
        fresh = self.canvas.ids.new_zeros(len(slots))
        self.previous = torch.cat((padded(self.previous, length, -1), fresh[:, None].expand(-1, length) - 1))
        self.unchanged = torch.cat((self.unchanged, fresh))
        self.pass_index = torch.cat((self.pass_index, fresh))
        self._are([*self.slots, *slots])

    def keep(self, wanted: Callable[[Slot], bool]) -> None:
        """Only those slots stay."""
        places = [place for place, slot in enumerate(self.slots) if wanted(slot)]
        if len(places) == len(self.slots):
            return
        kept = [self.slots[place] for place in places]
        length = max((slot.length for slot in kept), default=0)
        rows = torch.tensor(places, dtype=torch.int64, device=self.device)
        self.canvas = Canvas(self.canvas.ids[rows, :length], self.canvas.pinned[rows, :length])
        self.previous = self.previous[rows, :length]
        self.unchanged, self.pass_index = self.unchanged[rows], self.pass_index[rows]
        self._are(kept)

    def _are(self, slots: list[Slot]) -> None:
        self.slots = slots
        for place, slot in enumerate(slots):
            slot.place = place
        self.rules = Rules(self)

    def ids(self, slot: Slot) -> Tensor:
        """What stands on one slot's canvas [length]."""
        return self.canvas.ids[slot.place, : slot.length]

    def moved_on(self, canvas: Canvas, argmax: Tensor, unchanged: Tensor) -> None:
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

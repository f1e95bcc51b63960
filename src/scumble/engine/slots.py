"""Canvases in flight: S of them as tensors [S, L], each with settings of its own.

A slot is one candidate of one row's canvas. Slots of unequal length are pinned behind their end (see
diffusion/canvas.py). Tensors are put together anew only when canvases join or leave, not from pass to pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import accumulate
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from scumble.decode.constraint import Law
from scumble.decode.steps import Denoised, Start
from scumble.diffusion import Address, Canvas, Proposal, SeededNoise
from scumble.engine.row import Row
from scumble.ops import Ops, VocabQuery
from scumble.ops.classes import Classified

T = TypeVar("T")


@dataclass(eq=False)
class Slot:
    """The host's side of one canvas. soft [length, D]: what a pass leaves for the next; None before the first.

    home, place: the tensors in which its canvas lies, and which of the S there it is; None before the first pass.
    asked: what the request's own noise and law have said in this pass. error: what one of them raised, or that its
    numbers are none. result: when it is done.
    """

    row: Row
    candidate: int
    index: int
    start: Start
    pass_index: int = 0
    soft: Tensor | None = None
    home: Slots | None = None
    place: int = -1
    asked: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None
    result: Denoised | None = None

    def ask(self, name: str, call: Callable[[], T]) -> T | None:
        """What the request's own noise or law says. It is asked once a pass, even if the pass is computed again for an
        error of somebody else's. None after an error, which ends the request and nobody else's."""
        try:
            if self.error is None and name not in self.asked:
                self.asked[name] = call()
        except Exception as error:
            self.error = error
        return self.asked.get(name) if self.error is None else None

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

    @property
    def ids(self) -> Tensor:
        """What stands on its canvas [length]."""
        return self.start.canvas.ids[0] if self.home is None else self.home.canvas.ids[self.place, : self.length]

    def state(self, device: torch.device) -> tuple[Tensor, ...]:
        """Its own part of canvas, previous, unchanged and pass_index (see Slots)."""
        rows, own = slice(self.place, self.place + 1), self.start.canvas
        if self.home is None:
            zero = torch.zeros(1, dtype=torch.int64, device=device)
            return own.ids.to(device), own.pinned.to(device), torch.full_like(own.ids, -1, device=device), zero, zero
        home, at = self.home, (rows, slice(self.length))
        return (
            home.canvas.ids[at],
            home.canvas.pinned[at],
            home.previous[at],
            home.unchanged[rows],
            home.pass_index[rows],
        )


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
            slot.home, slot.place = self, place

    @classmethod
    def of(cls, slots: list[Slot], vocab: int, device: torch.device) -> Slots:
        """These canvases, as far as each has come: the tensors in which they lie, if they are all that lies there."""
        home = slots[0].home
        if home is not None and home.slots == slots:
            return home
        length = max(slot.length for slot in slots)
        ids, pinned, previous, unchanged, passes = zip(*(slot.state(device) for slot in slots), strict=True)
        canvas = Canvas(padded(ids, length, 0), padded(pinned, length, True))
        return cls(slots, canvas, padded(previous, length, -1), torch.cat(unchanged), torch.cat(passes), vocab)

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def device(self) -> torch.device:
        return self.canvas.ids.device

    @cached_property
    def rules(self) -> Rules:
        return Rules(self)

    def move_on(self, canvas: Canvas, argmax: Tensor, unchanged: Tensor) -> None:
        """A pass is over."""
        self.canvas, self.previous, self.unchanged = canvas, argmax, unchanged
        self.pass_index = self.pass_index + 1
        for slot in self.slots:
            slot.pass_index, slot.asked = slot.pass_index + 1, {}


class Rules:
    """The settings of S slots as tensors, and how their positions lie packed, one slot after another, N in all."""

    def __init__(self, slots: Slots):
        self.slots, device = slots, slots.device
        requests = [slot.row.request for slot in slots.slots]
        lengths = [slot.length for slot in slots.slots]
        self.length = max(lengths)
        self.samplers = stacked([request.sampler for request in requests], device)
        self.stoppings = stacked([request.stopping for request in requests], device)
        self.passes = torch.tensor([request.schedule.passes for request in requests], device=device)
        self.is_greedy = torch.tensor([[request.config.temperature == 0] for request in requests], device=device)
        self.takes_sample = torch.tensor([[request.config.commit == "sample"] for request in requests], device=device)
        noises = [slot.start.noise for slot in slots.slots]
        self.given = [slot for slot in slots.slots if type(slot.start.noise) is not SeededNoise]
        seeded = [noise if isinstance(noise, SeededNoise) else SeededNoise(0) for noise in noises]
        self.address = Address.of(seeded, [slot.index for slot in slots.slots], device)
        self.allowed, self.mask = masks(slots.slots, slots.vocab, device)
        owners = [place for place, length in enumerate(lengths) for _ in range(length)]
        self._owner = torch.tensor(owners, device=device)  # [N] the slot of each position
        self._begins = [end - length for end, length in zip(accumulate(lengths), lengths, strict=True)]
        self._is_even = len(set(lengths)) == 1
        if not self._is_even:
            place, begins = torch.arange(self.length), torch.tensor(self._begins)
            inside = place < torch.tensor(lengths)[:, None]
            self._packed = inside.flatten().nonzero()[:, 0].to(device)  # [N] places in S · L
            self._padded = torch.where(inside, begins[:, None] + place, 0).to(device)  # [S, L] places in N

    def pack(self, values: Tensor) -> Tensor:
        """[S, L] -> [N]"""
        return values.flatten() if self._is_even else values.flatten()[self._packed]

    def pad(self, values: Tensor) -> Tensor:
        """[N] -> [S, L]; what stands behind the end of a short slot means nothing."""
        return values.view(len(self.slots), -1) if self._is_even else values[self._padded]

    def noise(self, ops: Ops) -> tuple[Tensor, Tensor]:
        """Of this pass: uniforms [S, L] float64 and ids to renoise [S, L]; on the device, but for what is handed in."""
        uniforms, fresh = ops.noise(self.address, self.slots.pass_index, self.length, self.slots.vocab)
        for slot in self.given:
            drawn = slot.ask("noise", partial(self._given, slot))
            if drawn is not None:
                uniforms[slot.place, : slot.length], fresh[slot.place, : slot.length] = drawn
        return uniforms, fresh

    def _given(self, slot: Slot) -> tuple[Tensor, Tensor]:
        noise, at = slot.start.noise, (slot.index, slot.pass_index, slot.length)
        drawn = torch.as_tensor(noise.uniform(*at)), torch.as_tensor(noise.renoise(*at, self.slots.vocab))
        return drawn[0].to(self.slots.device), drawn[1].to(self.slots.device)

    def query(self, uniforms: Tensor) -> VocabQuery:
        """What is asked of the vocabulary operator about all positions [N] in one call. uniforms [S, L]."""
        slots, temperatures = self.slots.slots, [slot.temperature for slot in self.slots.slots]
        heat: float | Tensor = temperatures[0]
        if len(set(temperatures)) > 1:
            heat = torch.tensor(temperatures).to(uniforms.device)[self._owner]
        return VocabQuery(
            heat,
            self.allowed,
            None if all(slot.is_greedy for slot in slots) else self.pack(uniforms),
            want_soft=not all(slot.is_last_pass for slot in slots),  # nothing follows that would read a soft embedding
            classes=[
                Classified(slot.law.classes, begin, begin + slot.length)
                for slot, begin in zip(slots, self._begins, strict=True)
                if slot.law is not None and slot.law.classes is not None
            ],
            mask=self.mask,
        )

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


def masks(slots: Sequence[Slot], vocab: int, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """The different masks of the slots' positions [m, V], the first of which allows all, and each position's [N]; or
    nothing, where no position has any."""
    every, found, which = [torch.ones(vocab, dtype=torch.bool)], {}, []  # found: by address, masks are shared
    for slot in slots:
        allowed = slot.start.restriction.allowed
        for mask in allowed.values():
            if id(mask) not in found:
                found[id(mask)] = len(every)
                every.append(mask)
        which += [found[id(allowed[place])] if place in allowed else 0 for place in range(slot.length)]
    return (torch.stack(every).to(device), torch.tensor(which).to(device)) if found else (None, None)


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


def padded(parts: Sequence[Tensor], length: int, value: int) -> Tensor:
    """[1, l ≤ length] of each slot -> [S, length]"""
    return torch.cat([F.pad(part, (0, length - part.shape[1]), value=value) for part in parts])

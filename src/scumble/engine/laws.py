"""The canvases of a pass that have a law (decode/constraint.py): its proposal, acceptance and commit take the place of
those by independent positions. A law that fails ends its own request."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import TypeVar

from torch import Tensor

from scumble.decode.constraint import Law, Look
from scumble.diffusion import Canvas, Proposal
from scumble.engine.slots import Slot, Slots
from scumble.ops import VocabResult

T = TypeVar("T", Canvas, Proposal)


class Laws:
    """uniforms [S, L] of the pass; what independent positions propose [S, L], and what it was made of: result [N]."""

    def __init__(self, slots: Slots, result: VocabResult, uniforms: Tensor, proposal: Proposal):
        self._looks: dict[Slot, tuple[Law, Look]] = {}
        classes = iter(result.classes)
        logsumexp = result.logsumexp.split([slot.length for slot in slots.slots])
        for slot, own in zip(slots.slots, logsumexp, strict=True):
            if (law := slot.law) is not None:
                self._looks[slot] = (
                    law,
                    Look(
                        canvas=one(slots.canvas, slot),
                        proposal=one(proposal, slot),
                        temperature=slot.temperature,
                        uniforms=None if slot.is_greedy else uniforms[slot.place, : slot.length],
                        logsumexp=own,
                        classes=None if law.classes is None else next(classes),
                    ),
                )

    def propose(self, proposal: Proposal) -> Proposal:
        if not self._looks:
            return proposal
        proposal = Proposal(proposal.argmax.clone(), proposal.sample.clone(), proposal.entropy.clone())
        for slot, (law, look) in self._looks.items():
            own = slot.tried(partial(law.propose, look))
            for field in fields(Proposal) if own is not None else ():
                getattr(proposal, field.name)[slot.place, : slot.length] = getattr(own, field.name)[0]
        return proposal

    def accept(self, proposal: Proposal, accepted: Tensor) -> Tensor:
        for slot, (law, look) in self._looks.items():
            own = slot.tried(partial(law.accept, look, one(proposal, slot)))
            if own is not None:
                accepted = accepted.clone()
                accepted[slot.place, : slot.length] = own[0]
        return accepted

    def commit(self, slots: list[Slot], proposal: Proposal, committed: Tensor) -> Tensor:
        """Of canvases that are done."""
        for slot in slots:
            if slot in self._looks:
                law, look = self._looks[slot]
                own = slot.tried(partial(law.commit, look.canvas, one(proposal, slot)))
                if own is not None:
                    committed = committed.clone()
                    committed[slot.place, : slot.length] = own[0]
        return committed


def one(several: T, slot: Slot) -> T:
    """One slot's own part [1, length] of canvases or proposals [S, L]."""
    rows = slice(slot.place, slot.place + 1)
    return type(several)(*(getattr(several, field.name)[rows, : slot.length] for field in fields(several)))

"""The end of a pass over canvases: what the model's hidden states make of them, for all S slots at once.

    hidden ─► vocabulary ─► proposal [S, L] ─► accept ─► renoise ─► next canvases
                                     └───────► stopping ─► flags ─► the host: who is done, whose numbers are none

Nothing before the flags waits for the device; tests/engine/test_sync.py holds that. (A law of a canvas's own may wait
for what it likes.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from scumble.decode.constraint import Look
from scumble.decode.steps import Denoise, Denoised, PassDone
from scumble.diffusion import Canvas, Proposal, committed_ids, count_unchanged, renoise
from scumble.diffusion.canvas import finite
from scumble.engine.row import Outcome, Row
from scumble.engine.slots import Slot, Slots
from scumble.errors import not_finite
from scumble.model import Transformer
from scumble.ops import VocabResult

T = TypeVar("T", Canvas, Proposal)


@dataclass(frozen=True)
class Pass:
    """What a pass made of the canvases [S, L]. following: the next canvases. flags [3, S] bool: the stopping rule says
    stop; the canvas is done; its numbers are finite. soft [N, D]: for the next pass, packed; None: nobody needs it."""

    proposal: Proposal
    accepted: Tensor
    following: Canvas
    unchanged: Tensor
    flags: Tensor
    soft: Tensor | None


class Denoiser:
    """Owns the canvases in flight, by row: the candidates of each one's present canvas."""

    def __init__(self, model: Transformer):
        self.model = model
        self.canvases: dict[Row, list[Slot]] = {}

    def begin(self, row: Row, wants: Denoise) -> None:
        """A row's next canvases join those in flight."""
        vocab = self.model.config.vocab_size
        for mask in (mask for start in wants.starts for mask in start.restriction.allowed.values()):
            if mask.shape != (vocab,):  # kernels trust in it
                raise ValueError(f"a mask of ids must be [{vocab}], found {list(mask.shape)}")
        self.canvases[row] = [Slot(row, number, wants.index, start) for number, start in enumerate(wants.starts)]

    def drop(self, row: Row) -> None:
        """A row's canvases leave."""
        self.canvases.pop(row, None)

    def slots(self, rows: Sequence[Row]) -> list[Slot]:
        """The canvases of some rows that are not done."""
        return [slot for row in rows for slot in self.canvases.get(row, ()) if slot.result is None]

    def together(self, rows: Sequence[Row]) -> Slots:
        return Slots.of(self.slots(rows), self.model.config.vocab_size, self.model.device)

    def run(self, rows: Sequence[Row], hidden: Tensor) -> list[Outcome]:
        """One pass, from the hidden states [N, D] of the canvases of some rows. After an error all are as before."""
        slots = self.together(rows)
        _ = slots.rules  # made on the host, so before the pass
        return self.conclude(slots, self.compute(slots, hidden))

    def compute(self, slots: Slots, hidden: Tensor) -> Pass:
        """All of a pass that happens on the device."""
        uniforms, fresh = slots.rules.noise(self.model.ops)
        return decide(slots, self.model.vocab_head(hidden, slots.rules.query(uniforms)), uniforms, fresh)

    def conclude(self, slots: Slots, done: Pass) -> list[Outcome]:
        """What a pass means for its rows. Where a row's candidates are all done, it goes on."""
        stopped, is_done, is_finite = done.flags.tolist()  # the pass's one wait for the device
        for slot in slots.slots:
            if not is_finite[slot.place]:
                slot.error = slot.error or not_finite(float("nan"))
        whole = [slot for slot in slots.slots if slot.error is None]
        outcomes = [
            Outcome(slot.row, told=told(slots, done, slot, stopped[slot.place]))
            for slot in whole
            if slot.row.wants_drafts
        ]
        finished = [slot for slot in whole if is_done[slot.place]]
        if finished:
            committed = committed_ids(slots.rules.takes_sample, slots.canvas, done.proposal).tolist()
            for slot in finished:
                slot.result = Denoised(tuple(committed[slot.place][: slot.length]), slot.pass_index + 1)
        for row in dict.fromkeys(slot.row for slot in finished):
            results = [slot.result for slot in self.canvases[row]]
            if None not in results:
                outcomes.append(Outcome(row, results))
        self.keep_soft(slots, done)
        slots.move_on(done.following, done.proposal.argmax, done.unchanged)
        return outcomes + [Outcome(slot.row, error=slot.error) for slot in slots.slots if slot.error is not None]

    def keep_soft(self, slots: Slots, done: Pass) -> None:
        if done.soft is not None:
            weight = self.model.embed_tokens.weight
            for slot, soft in zip(slots.slots, done.soft.split([slot.length for slot in slots.slots]), strict=True):
                slot.soft = soft
                if slot.start.restriction.pinned:  # certain of its id, so its soft embedding is that id's embedding
                    canvas = one(slots.canvas, slot)
                    slot.soft = torch.where(canvas.pinned[0, :, None], weight[canvas.ids[0]].float(), soft)


def told(slots: Slots, done: Pass, slot: Slot, stopped: bool) -> PassDone:
    before, after, proposal = one(slots.canvas, slot), one(done.following, slot), one(done.proposal, slot)
    accepted = done.accepted[slot.place, : slot.length]
    return PassDone(
        slot.index, slot.pass_index, slot.temperature, before.ids[0], after.ids[0], accepted, proposal.argmax[0],
        proposal.sample[0], proposal.entropy[0], stopped, slot.candidate,
    )  # fmt: skip


def decide(slots: Slots, result: VocabResult, uniforms: Tensor, fresh: Tensor) -> Pass:
    """The rules: result [N] of all slots' positions; uniforms and fresh ids [S, L] of this pass."""
    rules = slots.rules
    proposal = proposed(slots, result)
    if any(slot.law is not None for slot in slots.slots):
        proposal = under_laws(slots, proposal, result, uniforms)

    accepted = rules.accept(proposal)
    following = renoise(slots.canvas, proposal, accepted, fresh)

    unchanged = count_unchanged(proposal.argmax, slots.previous, slots.unchanged)
    stopped = rules.done(proposal, unchanged)
    is_last = slots.pass_index + 1 == rules.passes
    flags = torch.stack((stopped, stopped | is_last, finite(proposal.entropy).all(-1)))
    return Pass(proposal, accepted, following, unchanged, flags, result.soft)


def proposed(slots: Slots, result: VocabResult) -> Proposal:
    """What independent positions propose [S, L], from the operator's results [N]. A pinned position proposes its own
    id and is certain of it."""
    canvas, rules = slots.canvas, slots.rules
    sample = result.argmax if result.sample is None else result.sample
    argmax, sample = rules.pad(result.argmax), rules.pad(sample)
    return Proposal(
        argmax=canvas.keep_pinned(argmax),
        sample=canvas.keep_pinned(torch.where(rules.is_greedy, argmax, sample)),
        entropy=rules.pad(result.entropy).masked_fill(canvas.pinned, 0.0),
    )


def under_laws(slots: Slots, proposal: Proposal, result: VocabResult, uniforms: Tensor) -> Proposal:
    """The same, where canvases that have a law (decode/constraint.py) propose what it says. One that fails ends its own
    request."""
    out = Proposal(proposal.argmax.clone(), proposal.sample.clone(), proposal.entropy.clone())
    classes = iter(result.classes)
    parts = result.logsumexp.split([slot.length for slot in slots.slots])
    for slot, logsumexp in zip(slots.slots, parts, strict=True):
        if slot.law is None:
            continue
        look = Look(
            canvas=one(slots.canvas, slot),
            proposal=one(proposal, slot),
            temperature=slot.temperature,
            uniforms=None if slot.is_greedy else uniforms[slot.place, : slot.length],
            logsumexp=logsumexp,
            classes=None if slot.law.classes is None else next(classes),
        )
        own = slot.ask("law", partial(slot.law.propose, look))
        if own is not None:
            for name in ("argmax", "sample", "entropy"):
                getattr(out, name)[slot.place, : slot.length] = getattr(own, name)[0]
    return out


def one(several: T, slot: Slot) -> T:
    """One slot's own part [1, length] of canvases or proposals [S, L]."""
    rows = slice(slot.place, slot.place + 1)
    return type(several)(*(getattr(several, field.name)[rows, : slot.length] for field in fields(several)))

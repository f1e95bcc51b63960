"""The end of a pass over canvases: what the model's hidden states make of them, for all S slots at once.

    hidden ─► head ─► proposal [S, L] ─► accept ─► renoise ─► next canvases
                               └───────► stopping ─► flags ─► the host: who is done, whose numbers are none

Nothing before the flags waits for the device; tests/engine/test_sync.py holds that. (A law of a canvas's own,
engine/laws.py, may wait for what it likes.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from scumble.decode.steps import Denoise, Denoised, PassDone
from scumble.diffusion import Canvas, Proposal, committed_ids, count_unchanged, renoise
from scumble.engine.head import Head
from scumble.engine.laws import Laws, one
from scumble.engine.row import Outcome, Row
from scumble.engine.slots import Slot, Slots
from scumble.errors import not_finite
from scumble.model import Transformer
from scumble.ops import VocabResult


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
    laws: Laws


class Denoiser:
    """Owns the canvases in flight."""

    def __init__(self, model: Transformer):
        self.model = model
        self.head = Head(model)
        self.slots = self.starting([])
        self.aside: dict[Row, Slots] = {}

    def starting(self, slots: Sequence[Slot]) -> Slots:
        return Slots.starting(slots, self.model.config.vocab_size, self.model.device)

    def begin(self, row: Row, wants: Denoise) -> None:
        """A row's next canvases join those in flight."""
        for mask in (mask for start in wants.starts for mask in start.restriction.allowed.values()):
            if mask.shape != (self.model.config.vocab_size,):  # kernels trust in it
                raise ValueError(f"a mask of ids must be [{self.model.config.vocab_size}], found {list(mask.shape)}")
        fresh = [Slot(row, number, wants.index, start) for number, start in enumerate(wants.starts)]
        self.slots = Slots.joined([self.slots, self.starting(fresh)])

    def drop(self, row: Row) -> None:
        """A row's canvases leave."""
        self.slots = self.slots.taken(lambda slot: slot.row is not row)
        self.aside.pop(row, None)

    def set_aside(self, row: Row) -> None:
        """A row's canvases take part in no pass, and stay as they are, until `resume`."""
        if row not in self.aside:
            own = self.slots.taken(lambda slot: slot.row is row)
            self.drop(row)
            self.aside[row] = own

    def resume(self, row: Row) -> None:
        own = self.aside.pop(row, None)
        if own is not None:
            self.slots = Slots.joined([self.slots, own])

    def run(self, hidden: Mapping[Slot, Tensor]) -> list[Outcome]:
        """hidden: [length, D] of every slot in flight, but for those whose forward failed; they leave, as do those that
        fail here and those that are done."""
        self.slots = self.slots.taken(lambda slot: slot in hidden)
        try:
            outcomes = self.advance(self.slots, hidden)
        except Exception:
            outcomes = self.advance_apart(hidden)
        self.slots = self.slots.taken(lambda slot: not slot.is_done and slot.error is None)
        return outcomes

    def advance_apart(self, hidden: Mapping[Slot, Tensor]) -> list[Outcome]:
        """Row by row, after an error that may be anybody's: it ends the request that fails alone as well."""
        outcomes, parts = [], [self.starting([])]
        for row in dict.fromkeys(slot.row for slot in self.slots.slots):
            part = self.slots.taken(partial(is_of, row))
            try:
                outcomes += self.advance(part, hidden)
                parts.append(part)
            except Exception as error:
                outcomes.append(Outcome(row, error=error))
        self.slots = Slots.joined(parts)
        return outcomes

    def advance(self, slots: Slots, hidden: Mapping[Slot, Tensor]) -> list[Outcome]:
        """One pass. After an error the slots are as they were."""
        _ = slots.rules  # made on the host, so before the pass
        return self.conclude(slots, self.compute(slots, torch.cat([hidden[slot] for slot in slots.slots])))

    def replayed(self, done: Pass) -> list[Outcome]:
        """What follows of a pass over all slots that was computed elsewhere (engine/replay.py)."""
        outcomes = self.conclude(self.slots, done)
        self.slots = self.slots.taken(lambda slot: not slot.is_done and slot.error is None)
        return outcomes

    def conclude(self, slots: Slots, done: Pass) -> list[Outcome]:
        """What a pass means for its rows."""
        stopped, is_done, is_finite = done.flags.tolist()  # the pass's one wait for the device
        for slot in slots.slots:
            if not is_finite[slot.place]:
                slot.error = slot.error or not_finite(float("nan"))
            slot.is_done = is_done[slot.place] and slot.error is None
        outcomes = [
            Outcome(slot.row, told=self.told(slots, done, slot, stopped[slot.place]))
            for slot in slots.slots
            if slot.row.wants_drafts and slot.error is None
        ]
        outcomes += self.finish(slots, done)
        outcomes += [Outcome(slot.row, error=slot.error) for slot in slots.slots if slot.error is not None]
        self.move_on(slots, done)
        return outcomes

    def compute(self, slots: Slots, hidden: Tensor) -> Pass:
        """hidden [N, D] of all slots, one after another. All of a pass that happens on the device."""
        rules = slots.rules
        uniforms, fresh = rules.noise()
        result = self.head.look(slots.slots, hidden, rules.pack(uniforms))
        return decide(slots, result, uniforms, fresh)

    def told(self, slots: Slots, done: Pass, slot: Slot, stopped: bool) -> PassDone:
        before, after, proposal = one(slots.canvas, slot), one(done.following, slot), one(done.proposal, slot)
        accepted = done.accepted[slot.place, : slot.length]
        return PassDone(
            slot.index, slot.pass_index, slot.temperature, before.ids[0], after.ids[0], accepted, proposal.argmax[0],
            proposal.sample[0], proposal.entropy[0], stopped, slot.candidate,
        )  # fmt: skip

    def finish(self, slots: Slots, done: Pass) -> list[Outcome]:
        """Keep the ids of canvases that are done; rows that wait for no other candidate go on."""
        finished = [slot for slot in slots.slots if slot.is_done]
        if not finished:
            return []
        committed = committed_ids(slots.rules.takes_sample, slots.canvas, done.proposal)
        committed = done.laws.commit(finished, done.proposal, committed)
        places = torch.tensor([slot.place for slot in finished], device=committed.device)
        for slot, ids in zip(finished, committed[places].tolist(), strict=True):
            slot.row.denoised[slot.candidate] = Denoised(tuple(ids[: slot.length]), slot.pass_index + 1)
        outcomes = []
        for row in dict.fromkeys(slot.row for slot in finished):
            assert isinstance(row.wants, Denoise)
            candidates = range(len(row.wants.starts))
            if len(row.denoised) == len(candidates):
                outcomes.append(Outcome(row, [row.denoised[number] for number in candidates]))
        return outcomes

    def move_on(self, slots: Slots, done: Pass) -> None:
        """Into the next pass."""
        if done.soft is not None:
            weight = self.model.embed_tokens.weight
            for slot, soft in zip(slots.slots, done.soft.split([slot.length for slot in slots.slots]), strict=True):
                slot.soft = soft
                if slot.start.restriction.pinned:  # certain of its id, so its soft embedding is that id's embedding
                    canvas = one(slots.canvas, slot)
                    slot.soft = torch.where(canvas.pinned[0, :, None], weight[canvas.ids[0]].float(), soft)
        slots.move_on(done.following, done.proposal.argmax, done.unchanged)


def is_of(row: Row, slot: Slot) -> bool:
    return slot.row is row


def decide(slots: Slots, result: VocabResult, uniforms: Tensor, fresh: Tensor) -> Pass:
    """The rules: result [N] of all slots' positions; uniforms and fresh ids [S, L] of this pass."""
    rules = slots.rules
    proposal = proposed(slots, result)
    laws = Laws(slots, result, uniforms, proposal)
    proposal = laws.propose(proposal)

    accepted = laws.accept(proposal, rules.accept(proposal))
    following = renoise(slots.canvas, proposal, accepted, fresh)

    unchanged = count_unchanged(proposal.argmax, slots.previous, slots.unchanged)
    stopped = rules.done(proposal, unchanged)
    is_last = slots.pass_index + 1 == rules.passes
    flags = torch.stack((stopped, stopped | is_last, proposal.entropy.isfinite().all(-1)))
    return Pass(proposal, accepted, following, unchanged, flags, result.soft, laws)


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

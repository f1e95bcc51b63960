"""The end of a pass over canvases: what the model's hidden states make of them, for all S slots at once.

    hidden ─► head ─► proposal [S, L] ─► accept ─► renoise ─► next canvases
                               └───────► stopping ─► flags ─► the host: who is done, whose numbers are none

Nothing before the flags waits for the device; tests/engine/test_sync.py holds that. (A law of a canvas's own,
engine/laws.py, may wait for what it likes.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
        self.slots = Slots(model.config.vocab_size, model.device)

    def begin(self, row: Row, wants: Denoise) -> None:
        """A row's next canvases join those in flight."""
        self.slots.join([Slot(row, number, wants.index, start) for number, start in enumerate(wants.starts)])

    def run(self, hidden: Mapping[Slot, Tensor]) -> list[Outcome]:
        """hidden: [length, D] of every slot in flight."""
        slots = list(self.slots.slots)
        done = self.compute(torch.cat([hidden[slot] for slot in slots]))
        stopped, is_done, is_finite = done.flags.tolist()  # the pass's one wait for the device
        for slot in slots:
            if not is_finite[slot.place]:
                slot.error = slot.error or not_finite(float("nan"))
        finished = [slot for slot in slots if is_done[slot.place] and slot.error is None]
        outcomes = [
            Outcome(slot.row, told=self.told(done, slot, stopped[slot.place]))
            for slot in slots
            if slot.row.wants_drafts and slot.error is None
        ]
        outcomes += self.finish(finished, done)
        outcomes += [Outcome(slot.row, error=slot.error) for slot in slots if slot.error is not None]
        self.move_on(done, finished)
        return outcomes

    def compute(self, hidden: Tensor) -> Pass:
        """hidden [N, D] of all slots, one after another. All of a pass that happens on the device."""
        slots, rules = self.slots, self.slots.rules
        uniforms, fresh = rules.noise()
        result = self.head.look(slots.slots, hidden, rules.pack(uniforms))
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

    def told(self, done: Pass, slot: Slot, stopped: bool) -> PassDone:
        before, after, proposal = one(self.slots.canvas, slot), one(done.following, slot), one(done.proposal, slot)
        accepted = done.accepted[slot.place, : slot.length]
        return PassDone(
            slot.index, slot.pass_index, slot.temperature, before.ids[0], after.ids[0], accepted, proposal.argmax[0],
            proposal.sample[0], proposal.entropy[0], stopped, slot.candidate,
        )  # fmt: skip

    def finish(self, slots: list[Slot], done: Pass) -> list[Outcome]:
        """Keep the ids of canvases that are done; rows that wait for no other candidate go on."""
        if not slots:
            return []
        committed = committed_ids(self.slots.rules.takes_sample, self.slots.canvas, done.proposal)
        committed = done.laws.commit(slots, done.proposal, committed)
        places = torch.tensor([slot.place for slot in slots], device=committed.device)
        for slot, ids in zip(slots, committed[places].tolist(), strict=True):
            slot.row.denoised[slot.candidate] = Denoised(tuple(ids[: slot.length]), slot.pass_index + 1)
        outcomes = []
        for row in dict.fromkeys(slot.row for slot in slots):
            assert isinstance(row.wants, Denoise)
            candidates = range(len(row.wants.starts))
            if len(row.denoised) == len(candidates):
                outcomes.append(Outcome(row, [row.denoised[number] for number in candidates]))
        return outcomes

    def move_on(self, done: Pass, finished: list[Slot]) -> None:
        """Into the next pass; canvases that are done or failed leave."""
        slots = self.slots
        if done.soft is not None:
            weight = self.model.embed_tokens.weight
            for slot, soft in zip(slots.slots, done.soft.split([slot.length for slot in slots.slots]), strict=True):
                slot.soft = soft
                if slot.start.restriction.pinned:  # certain of its id, so its soft embedding is that id's embedding
                    canvas = one(slots.canvas, slot)
                    slot.soft = torch.where(canvas.pinned[0, :, None], weight[canvas.ids[0]].float(), soft)
        slots.moved_on(done.following, done.proposal.argmax, done.unchanged)
        slots.keep(lambda slot: slot not in finished and slot.error is None)


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

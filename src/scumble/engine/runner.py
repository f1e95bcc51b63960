"""One pass for all rows: a forward over everything that rows have to encode, read and denoise, and what follows of it.

chunks, texts, canvases ─► segments ─► model ─► hidden states
hidden of canvases ─► engine/denoise: head, rules, flags ─► next canvases, and ids of those that are done
hidden of steps ─► head ─► next tokens          hidden of texts ─► head ─► log-probabilities
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scumble.decode.steps import Prefill, Read, Reading, Step, Stepped
from scumble.engine.choose import choose, token_logprobs
from scumble.engine.denoise import Denoiser
from scumble.engine.replay import Replays
from scumble.engine.row import Outcome, Piece, Row
from scumble.engine.slots import Slot
from scumble.errors import not_finite
from scumble.model import Segment, Transformer


@dataclass(eq=False)
class Work:
    """What one row puts into a pass: ids to encode, and whether they are the last that its command waits for; texts to
    read; canvases. A row has one of the three, or canvases with ids that they must see in their context.

    piece: its canvases are those of the slots, or, when it is encoded again, nothing but company for the same rounding.
    hidden: states [n, D] of each segment that is not quiet; None: not there yet, or the forward failed.
    """

    row: Row
    piece: Piece | None = None
    is_last: bool = True
    texts: tuple[tuple[int, ...], ...] = ()
    slots: list[Slot] = field(default_factory=list)
    hidden: list[Tensor] | None = None


class Runner:
    """Owns the model, and by way of its denoiser the canvases in flight."""

    def __init__(self, model: Transformer):
        self.model = model
        self.denoiser = Denoiser(model)
        self.replays = Replays(model)

    @property
    def shares_forwards(self) -> bool:
        """A matrix product may round differently for different numbers of rows, and one rounding can flip an argmax.
        So rows share forwards only where the model's operations are batch-invariant."""
        return self.model.ops.batch_invariant

    @torch.no_grad()
    def run(self, batch: Sequence[Work]) -> list[Outcome]:
        """One pass over everything in the batch -> what it means for the rows that need not wait any longer."""
        if (outcomes := self.replayed(batch)) is not None:
            return outcomes
        groups = [list(batch)] if self.shares_forwards else [[work] for work in batch]
        outcomes = [outcome for group in groups for outcome in together(self.forward, group)]

        ready = [work for work in batch if work.is_last and work.hidden is not None]
        outcomes += [prefilled(work) for work in ready if isinstance(work.row.wants, Prefill)]
        outcomes += together(self.step, [work for work in ready if isinstance(work.row.wants, Step)])
        for work in ready:
            if isinstance(work.row.wants, Read):
                outcomes += together(self.read, [work])
        canvases = {slot: states for work in ready for slot, states in zip(work.slots, work.hidden or (), strict=False)}
        return outcomes + self.denoiser.run(canvases) if canvases else outcomes

    def replayed(self, batch: Sequence[Work]) -> list[Outcome] | None:
        """Where there is nothing but canvases, and the operations can replay a pass over them; else None."""
        if self.replays.is_off:
            return None
        slots = self.denoiser.slots
        alone = all(work.slots and work.piece is None for work in batch)
        if not alone or sum(len(work.slots) for work in batch) != len(slots):
            return None
        done = self.replays.run(slots)
        return None if done is None else self.denoiser.replayed(done)

    def forward(self, works: Sequence[Work]) -> list[Outcome]:
        """Fill in what the model makes of all works. No outcome yet."""
        if self.stepped(works):
            return []
        segments = {work: self.segments(work) for work in works}
        states = self.model([segment for work in works for segment in segments[work]])
        sizes = {work: [len(one.tokens) for one in segments[work] if not one.quiet] for work in works}
        parts = iter(states.split([size for work in works for size in sizes[work]]))
        for work in works:
            work.hidden = [next(parts) for _ in sizes[work]]
        return []

    def stepped(self, works: Sequence[Work]) -> bool:
        """The same where there is nothing but single steps, and the operations can replay them; else False."""
        if self.replays.is_off:
            return False
        tokens, caches = [], []
        for work in works:
            piece, cache = work.piece, work.row.cache
            is_step = isinstance(work.row.wants, Step) and work.is_last and not work.texts and not work.slots
            if not is_step or piece is None or cache is None or len(piece.ids) != 1 or piece.canvases:
                return False
            tokens.append(piece.ids.to(self.model.device))
            caches.append(cache)
        hidden = self.replays.step(tokens, caches)
        for work, own in zip(works, () if hidden is None else hidden.split(1), strict=False):
            work.hidden = [own]
        return hidden is not None

    def segments(self, work: Work) -> list[Segment]:
        row, device = work.row, self.model.device
        assert row.cache is not None
        out = []
        if work.piece is not None:
            is_heard = work.is_last and (
                isinstance(row.wants, Step) or (isinstance(row.wants, Prefill) and row.wants.heard)
            )
            out.append(Segment(work.piece.ids.to(device), row.cache, "encode", quiet=not is_heard))
            if not work.slots:
                out += [Segment(canvas.to(device), row.cache, "denoise") for canvas in work.piece.canvases]
        out += [Segment(torch.tensor(text, device=device), row.cache, "read") for text in work.texts]
        out += [Segment(self.denoiser.slots.ids(slot), row.cache, "denoise", slot.soft) for slot in work.slots]
        return out

    def step(self, works: Sequence[Work]) -> list[Outcome]:
        """The next token of rows that decode token by token, from the hidden state [1, D] of each one's last token."""
        rows = [work.row for work in works]
        wants = [row.wants for row in rows if isinstance(row.wants, Step)]
        last = [work.hidden[0][-1:] for work in works if work.hidden]
        groups = [torch.cat(last)] if self.shares_forwards else last
        logits = torch.cat([self.model.logits(hidden) for hidden in groups])
        finite = logits.amax(-1).isfinite()  # NaN if one of them is
        for place, want in enumerate(wants):
            allowed = want.restriction.allowed.get(0)  # pins are refused for this decoder
            if allowed is not None:
                logits[place] = logits[place].masked_fill(~allowed.to(logits.device), float("-inf"))
        uniforms = torch.tensor(
            [row.uniform(want.index) for row, want in zip(rows, wants, strict=True)], dtype=torch.float64
        )
        tokens = choose(logits, [row.request.config for row in rows], uniforms.to(logits.device))
        found = torch.stack((tokens, finite)).tolist()
        outcomes = []
        for row, hidden, token, is_finite in zip(rows, last, *found, strict=True):
            if not is_finite:
                outcomes.append(Outcome(row, error=not_finite(float("nan"))))
                continue
            asked, logprobs = row.request.config.logprobs, None
            if asked is not None:
                ids = torch.tensor([token], device=logits.device)
                logprobs = token_logprobs(self.model, hidden, ids, asked)[0]
            outcomes.append(Outcome(row, Stepped(token, logprobs)))
        return outcomes

    def read(self, works: Sequence[Work]) -> list[Outcome]:
        """Log-probabilities of texts from their hidden states: the token before a text predicts its first one, and so
        on. A text is read apart from being encoded when it is committed, also where there is only one: so asking for
        log-probabilities changes no token."""
        (work,) = works
        row, wants, hidden = work.row, work.row.wants, work.hidden
        assert isinstance(wants, Read)
        assert hidden is not None
        before = torch.cat([state for own in hidden for state in (wants.behind, own[:-1])])
        ids = torch.tensor([token for text in wants.texts for token in text], device=before.device)
        found = iter(token_logprobs(self.model, before, ids, wants.alternatives))
        logprobs = [tuple(next(found) for _ in text) for text in wants.texts]
        if not math.isfinite(total := sum(one.logprob for own in logprobs for one in own)):
            return [Outcome(row, error=not_finite(total))]
        last = [own[-1:] for own in hidden]
        return [Outcome(row, tuple(Reading(*pair) for pair in zip(logprobs, last, strict=True)))]


def together(call: Callable[[Sequence[Work]], list[Outcome]], works: Sequence[Work]) -> list[Outcome]:
    """What `call` makes of all works. After an error it is called for each work alone, so that the error ends no other
    request than those that it comes from."""
    if not works:
        return []
    try:
        return call(works)
    except Exception as error:
        if len(works) == 1:
            return [Outcome(works[0].row, error=error)]
    return [outcome for work in works for outcome in together(call, [work])]


def prefilled(work: Work) -> Outcome:
    return Outcome(work.row, work.hidden[0][-1:] if work.hidden else None)

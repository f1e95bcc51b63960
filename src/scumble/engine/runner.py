"""One pass for all rows: a forward over everything that rows have to encode, read and denoise, and what follows of it.

chunks, texts, canvases ─► segments ─► model ─► hidden states
hidden of canvases ─► engine/denoise: head, rules, flags ─► next canvases, and ids of those that are done
hidden of steps ─► head ─► next tokens          hidden of texts ─► head ─► log-probabilities
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scumble.decode.steps import Denoise, Prefill, Read, Reading, Step, Stepped
from scumble.engine.choose import TokenChoice, choose, token_logprobs
from scumble.engine.denoise import Denoiser
from scumble.engine.memory import no_room
from scumble.engine.replay import Replays
from scumble.engine.row import Outcome, Row
from scumble.engine.static_pass import Asked
from scumble.errors import not_finite
from scumble.model import Segment, Transformer

NOTHING = torch.zeros(0)


@dataclass(eq=False)
class Work:
    """What one row puts into a pass: ids [n] of its text to encode, if any; and, if these are the last, what it wants:
    canvases, or texts to read.

    is_done: the model has run on it. hidden: states [N, D] of all its tokens that are not quiet. found: of a replayed
    step the next id, and whether its logits are finite.
    """

    row: Row
    ids: Tensor | None
    is_last: bool
    is_done: bool = False
    hidden: Tensor = NOTHING
    found: tuple[int, int] | None = None

    def is_for(self, kind: type) -> bool:
        """Whether the pass does what the row wants, and that is such a command."""
        return self.is_last and isinstance(self.row.wants, kind)


class Runner:
    """Owns the model, and by way of its denoiser the canvases in flight."""

    def __init__(self, model: Transformer):
        self.model = model
        self.denoiser = Denoiser(model)
        self.replays = Replays(model)

    @torch.no_grad()
    def run(self, batch: Sequence[Work]) -> list[Outcome]:
        """One pass over everything in the batch -> what it means for the rows that need not wait any longer.

        A matrix product may round differently for different numbers of rows, and one rounding can flip an argmax. So
        rows share forwards only where the model's operations are batch-invariant.
        """
        if (outcomes := self.replayed(batch)) is not None:
            return outcomes
        groups = [batch] if self.model.ops.batch_invariant else [[work] for work in batch]
        return [outcome for works in groups for outcome in self.run_together(works)]

    def run_together(self, works: Sequence[Work]) -> list[Outcome]:
        outcomes = together(self.forward, works)
        for kind, finish in ((Prefill, self.prefilled), (Step, self.step), (Read, self.read), (Denoise, self.denoise)):
            outcomes += together(finish, [work for work in works if work.is_for(kind) and work.is_done])
        return outcomes

    def replayed(self, batch: Sequence[Work]) -> list[Outcome] | None:
        """Where there is nothing but canvases, and the operations can replay a pass over them; else None."""
        if self.replays.is_off or not batch or not all(work.is_for(Denoise) and work.ids is None for work in batch):
            return None
        slots = self.denoiser.together([work.row for work in batch])
        done = self.replays.run(slots)
        return None if done is None else self.denoiser.conclude(slots, done)

    def forward(self, works: Sequence[Work]) -> list[Outcome]:
        """Fill in what the model makes of all works. No outcome yet."""
        if self.stepped(works):
            return []
        segments = {work: self.segments(work) for work in works}
        states = self.model([segment for own in segments.values() for segment in own])
        sizes = [sum(len(one.tokens) for one in own if not one.quiet) for own in segments.values()]
        for work, hidden in zip(works, states.split(sizes), strict=True):
            work.hidden, work.is_done = hidden, True
        return []

    def stepped(self, works: Sequence[Work]) -> bool:
        """The same where there is nothing but single steps, and the operations can replay them; else False."""
        if self.replays.is_off:
            return False
        tokens, caches, uniforms = [], [], []
        for work in works:
            ids, cache, wants = work.ids, work.row.cache, work.row.wants
            if not work.is_last or not isinstance(wants, Step) or ids is None or cache is None or len(ids) != 1:
                return False
            if 0 in wants.restriction.allowed:
                return False
            tokens.append(int(ids))
            caches.append(cache)
            uniforms.append(work.row.uniform(wants.index))
        how = TokenChoice.of([work.row.request.config for work in works], torch.device("cpu"))
        done = self.replays.step(Asked(tokens, caches, how, uniforms))
        if done is None:
            return False
        hidden, found = done
        for work, own, pair in zip(works, hidden.split(1), zip(*found.tolist(), strict=True), strict=True):
            work.hidden, work.found, work.is_done = own, pair, True  # the step's one wait for the device
        return True

    def segments(self, work: Work) -> list[Segment]:
        cache, wants, device = work.row.cache, work.row.wants, self.model.device
        assert cache is not None
        out = []
        if work.ids is not None:
            is_heard = work.is_for(Step) or (work.is_for(Prefill) and isinstance(wants, Prefill) and wants.heard)
            out.append(Segment(work.ids.to(device), cache, "encode", quiet=not is_heard))
        if work.is_last and isinstance(wants, Read):
            out += [Segment(torch.tensor(text, device=device), cache, "read") for text in wants.texts]
        if work.is_last and isinstance(wants, Denoise):
            slots = self.denoiser.slots([work.row])
            out += [Segment(slot.ids.to(device), cache, "denoise", slot.soft) for slot in slots]
        return out

    def prefilled(self, works: Sequence[Work]) -> list[Outcome]:
        """The hidden state [1, D] of each prompt's last token, where it is heard."""
        return [Outcome(work.row, work.hidden[-1:] if len(work.hidden) else None) for work in works]

    def denoise(self, works: Sequence[Work]) -> list[Outcome]:
        return self.denoiser.run([work.row for work in works], torch.cat([work.hidden for work in works]))

    def step(self, works: Sequence[Work]) -> list[Outcome]:
        """The next token of rows that decode token by token, from the hidden state [1, D] of each one's last token."""
        rows = [work.row for work in works]
        last = [work.hidden[-1:] for work in works]
        found = [work.found for work in works if work.found is not None] or self.chosen(rows, torch.cat(last))
        outcomes = []
        for row, state, (token, is_finite) in zip(rows, last, found, strict=True):
            asked, logprobs = row.request.config.logprobs, None
            if not is_finite:
                outcomes.append(Outcome(row, error=not_finite(float("nan"))))
                continue
            if asked is not None:
                ids = torch.tensor([token], device=state.device)
                logprobs = token_logprobs(self.model, state, ids, asked)[0]
            outcomes.append(Outcome(row, Stepped(token, logprobs)))
        return outcomes

    def chosen(self, rows: Sequence[Row], hidden: Tensor) -> list[tuple[int, int]]:
        """The next id of each row, and whether its logits are finite, from hidden states [S, D]."""
        wants = [row.wants for row in rows if isinstance(row.wants, Step)]
        logits = self.model.logits(hidden)
        finite = logits.amax(-1).isfinite()  # NaN if one of them is
        for place, want in enumerate(wants):
            allowed = want.restriction.allowed.get(0)  # pins are refused for this decoder
            if allowed is not None:
                logits[place] = logits[place].masked_fill(~allowed.to(logits.device), float("-inf"))
        uniforms = [row.uniform(want.index) for row, want in zip(rows, wants, strict=True)]
        drawn = torch.tensor(uniforms, dtype=torch.float64).to(logits.device)
        how = TokenChoice.of([row.request.config for row in rows], logits.device)
        tokens = choose(logits, how, drawn)
        return list(zip(*torch.stack((tokens, finite)).tolist(), strict=True))

    def read(self, works: Sequence[Work]) -> list[Outcome]:
        """Log-probabilities of texts from their hidden states: the token before a text predicts its first one, and so
        on. A text is read apart from being encoded when it is committed, also where there is only one: so asking for
        log-probabilities changes no token."""
        outcomes = []
        for work in works:
            wants = work.row.wants
            assert isinstance(wants, Read)
            states = work.hidden.split([len(text) for text in wants.texts])
            before = torch.cat([state for own in states for state in (wants.behind, own[:-1])])
            ids = torch.tensor([token for text in wants.texts for token in text], device=before.device)
            found = iter(token_logprobs(self.model, before, ids, wants.alternatives))
            logprobs = [tuple(next(found) for _ in text) for text in wants.texts]
            if math.isfinite(total := sum(one.logprob for own in logprobs for one in own)):
                readings = zip(logprobs, (own[-1:] for own in states), strict=True)
                outcomes.append(Outcome(work.row, tuple(Reading(*reading) for reading in readings)))
            else:
                outcomes.append(Outcome(work.row, error=not_finite(total)))
        return outcomes


def together(call: Callable[[Sequence[Work]], list[Outcome]], works: Sequence[Work]) -> list[Outcome]:
    """What `call` makes of all works. After an error it is called for each work alone, so that the error ends no other
    request than those that it comes from."""
    if not works:
        return []
    try:
        return call(works)
    except Exception as error:
        if len(works) == 1:
            return [Outcome(works[0].row, error=no_room(error, works[0].row.tokens))]
    return [outcome for work in works for outcome in together(call, [work])]

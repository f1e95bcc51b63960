"""One pass for all rows: a forward over everything that rows have to encode, read and denoise, and what follows of it.

chunks, texts, canvases ─► segments ─► model ─► hidden states
hidden of canvases ─► engine/denoise: head, rules, flags ─► next canvases, and ids of those that are done
hidden of steps ─► head ─► next tokens          hidden of texts ─► head ─► log-probabilities
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scumble.decode.steps import Prefill, Read, Reading, Step, Stepped
from scumble.engine.choose import choose, token_logprobs
from scumble.engine.denoise import Denoiser
from scumble.engine.row import Outcome, Row
from scumble.engine.slots import Slot
from scumble.errors import not_finite
from scumble.model import Segment, Transformer


@dataclass(eq=False)
class Work:
    """What one row puts into a pass: ids to encode, and whether they are the last that its command waits for; texts to
    read; canvases. A row has one of the three, or canvases with ids that they must see in their context."""

    row: Row
    chunk: Tensor | None = None
    is_last: bool = False
    texts: tuple[tuple[int, ...], ...] = ()
    slots: list[Slot] = field(default_factory=list)


class Runner:
    """Owns the model, and by way of its denoiser the canvases in flight."""

    def __init__(self, model: Transformer):
        self.model = model
        self.denoiser = Denoiser(model)

    @property
    def shares_forwards(self) -> bool:
        """A matrix product may round differently for different numbers of rows, and one rounding can flip an argmax.
        So rows share forwards only where the model's operations are batch-invariant."""
        return self.model.ops.batch_invariant

    @torch.no_grad()
    def run(self, batch: Sequence[Work]) -> list[Outcome]:
        """One pass over everything in the batch -> what it means for the rows that need not wait any longer."""
        hidden = self.forward(batch)
        outcomes: list[Outcome] = []
        steps: list[tuple[Row, Step, Tensor]] = []
        canvases: dict[Slot, Tensor] = {}
        for work in batch:
            row, wants = work.row, work.row.wants
            if work.slots:
                canvases.update(zip(work.slots, hidden[work], strict=True))
            elif isinstance(wants, Read):
                outcomes.append(self.read(row, wants, hidden[work]))
            elif isinstance(wants, Step) and work.is_last:
                steps.append((row, wants, hidden[work][0][-1:]))
            elif isinstance(wants, Prefill) and work.is_last:
                outcomes.append(Outcome(row, hidden[work][0][-1:] if wants.heard else None))
        if steps:
            outcomes += self.step(steps)
        if canvases:
            outcomes += self.denoiser.run(canvases)
        return outcomes

    def forward(self, batch: Sequence[Work]) -> dict[Work, list[Tensor]]:
        """Hidden states [n, D] of every segment that is not quiet, by row."""
        segments = {work: self.segments(work) for work in batch}
        groups = [list(batch)] if self.shares_forwards else [[work] for work in batch]
        out: dict[Work, list[Tensor]] = {}
        for group in groups:
            hidden = self.model([segment for work in group for segment in segments[work]])
            sizes = {work: [len(one.tokens) for one in segments[work] if not one.quiet] for work in group}
            parts = iter(hidden.split([size for work in group for size in sizes[work]]))
            out |= {work: [next(parts) for _ in sizes[work]] for work in group}
        return out

    def segments(self, work: Work) -> list[Segment]:
        row, device = work.row, self.model.device
        assert row.cache is not None
        out = []
        if work.chunk is not None:
            is_heard = work.is_last and (
                isinstance(row.wants, Step) or (isinstance(row.wants, Prefill) and row.wants.heard)
            )
            out.append(Segment(work.chunk.to(device), row.cache, "encode", quiet=not is_heard))
        out += [Segment(torch.tensor(text, device=device), row.cache, "read") for text in work.texts]
        out += [Segment(self.denoiser.slots.ids(slot), row.cache, "denoise", slot.soft) for slot in work.slots]
        return out

    def step(self, steps: Sequence[tuple[Row, Step, Tensor]]) -> list[Outcome]:
        """The next token of rows that decode token by token, from the hidden state [1, D] of each one's last token."""
        rows, wants, last = zip(*steps, strict=True)
        groups = [torch.cat(last)] if self.shares_forwards else last
        logits = torch.cat([self.model.logits(hidden) for hidden in groups])
        finite = logits.amax(-1).isfinite()  # NaN if one of them is
        masks = {}
        for place, want in enumerate(wants):
            pinned, allowed = want.restriction.pinned.get(0), want.restriction.allowed.get(0)
            assert pinned is None, "make_request refuses pins for this decoder"
            if allowed is not None:
                masks[place] = allowed.to(logits.device)
        for place, mask in masks.items():
            logits[place] = logits[place].masked_fill(~mask, float("-inf"))
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

    def read(self, row: Row, wants: Read, hidden: Sequence[Tensor]) -> Outcome:
        """Log-probabilities of texts from their hidden states: the token before a text predicts its first one, and so
        on. A text is read apart from being encoded when it is committed, also where there is only one: so asking for
        log-probabilities changes no token."""
        before = torch.cat([state for own in hidden for state in (wants.behind, own[:-1])])
        ids = torch.tensor([token for text in wants.texts for token in text], device=before.device)
        found = iter(token_logprobs(self.model, before, ids, wants.alternatives))
        logprobs = [tuple(next(found) for _ in text) for text in wants.texts]
        if not math.isfinite(total := sum(one.logprob for own in logprobs for one in own)):
            return Outcome(row, error=not_finite(total))
        return Outcome(row, tuple(Reading(*pair) for pair in zip(logprobs, (own[-1:] for own in hidden), strict=True)))

"""When a canvas is done, and which of its ids are committed. Both are named choices; the defaults are the release's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scumble.diffusion.canvas import Canvas, Proposal
from scumble.settings import CommitRule, StabilityRule


@dataclass(frozen=True)
class StableAndConfident:
    """Stop when the mean entropy falls below `confidence` and the argmax is stable.

    "argmax_history" (`transformers`): the argmax equals that of each of the last `stability` passes; 0: always stable.
    "argmax_is_canvas" (Google's JAX sampler): the argmax equals the canvas that went into the pass.
    """

    stability: int
    confidence: float
    rule: StabilityRule = "argmax_history"

    def done(self, canvas: Canvas, proposal: Proposal, history: Sequence[Tensor]) -> bool:
        """canvas: as it went into the pass; history: the argmax ids of earlier passes, oldest first."""
        free = ~canvas.pinned
        if not bool(free.any()):
            return True
        if not float(proposal.entropy[free].mean()) < self.confidence:
            return False
        if self.rule == "argmax_is_canvas":
            return torch.equal(canvas.keep_pinned(proposal.argmax), canvas.ids)
        if len(history) < self.stability:
            return False
        recent = history[len(history) - self.stability :]
        return all(torch.equal(earlier, proposal.argmax) for earlier in recent)


def committed_ids(rule: CommitRule, canvas: Canvas, proposal: Proposal) -> Tensor:
    """Ids [L] to commit after the last pass: its argmax (`transformers`) or its sample (Google's JAX sampler)."""
    return canvas.keep_pinned(proposal.argmax if rule == "argmax" else proposal.sample)

"""When a canvas is done, and which of its ids are committed. Both are named choices; the defaults are the release's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scumble.diffusion.canvas import Canvas, Proposal, exact, finite
from scumble.settings import StabilityRule


class Stopping(Protocol):
    """A rule that says when canvases are done; like `Sampler`, one call for all canvases with rules of one kind."""

    @classmethod
    def stacked(cls, rules: Sequence[Stopping], device: torch.device) -> Stopping:
        """One rule for S canvases, whose numbers are tensors [S], from the rules of each."""
        ...

    def done(self, canvas: Canvas, proposal: Proposal, unchanged: Tensor) -> Tensor:
        """Mask [S]. canvas: as it went into the pass. unchanged [S] int64: how many passes before this one, without a
        gap, had the same argmax everywhere."""
        ...


@dataclass(frozen=True)
class StableAndConfident:
    """Stop when the mean entropy of the free positions falls below `confidence` (nats) and the argmax is stable.

    "argmax_history" (`transformers`): the argmax equals that of each of the last `stability` passes; 0: always stable.
    "argmax_is_canvas" (Google's JAX sampler): the argmax equals the canvas that went into the pass.
    A canvas without free positions is done at once. Numbers are for all canvases, or tensors [S].
    """

    stability: int | Tensor
    confidence: float | Tensor
    rule: StabilityRule | Tensor = "argmax_history"  # as a tensor: whether it is "argmax_is_canvas"

    @classmethod
    def stacked(cls, rules: Sequence[StableAndConfident], device: torch.device) -> StableAndConfident:
        return cls(
            torch.tensor([rule.stability for rule in rules], device=device),
            torch.tensor([rule.confidence for rule in rules], dtype=torch.float64, device=device),
            torch.tensor([rule.rule == "argmax_is_canvas" for rule in rules], device=device),
        )

    def done(self, canvas: Canvas, proposal: Proposal, unchanged: Tensor) -> Tensor:
        free = ~canvas.pinned
        count = free.sum(-1)
        # Compared as sums: Σ entropy < confidence · count. NaN is never below anything.
        total = exact(torch.where(free, proposal.entropy, 0.0)).sum(-1)
        known = (finite(proposal.entropy) | canvas.pinned).all(-1)
        confident = known & (total.double() < torch.as_tensor(self.confidence, device=total.device) * count * 2.0**40)
        is_canvas = (canvas.keep_pinned(proposal.argmax) == canvas.ids).all(-1)
        by_canvas = self.rule if isinstance(self.rule, Tensor) else self.rule == "argmax_is_canvas"
        stable = torch.where(
            torch.as_tensor(by_canvas, device=total.device),
            is_canvas,
            unchanged >= torch.as_tensor(self.stability, device=total.device),
        )
        return (confident & stable) | (count == 0)


def count_unchanged(argmax: Tensor, previous: Tensor, unchanged: Tensor) -> Tensor:
    """The next count [S]: one more where this pass's argmax [S, L] is the previous pass's, else 0. Before the first
    pass `previous` holds no id, -1 everywhere."""
    return torch.where((argmax == previous).all(-1), unchanged + 1, 0)


def committed_ids(takes_sample: bool | Tensor, canvas: Canvas, proposal: Proposal) -> Tensor:
    """Ids [S, L] to commit after the last pass: its argmax (`transformers`), or, where takes_sample [S, 1] says so, its
    sample (Google's JAX sampler)."""
    takes_sample = torch.as_tensor(takes_sample, device=canvas.ids.device)
    return canvas.keep_pinned(torch.where(takes_sample, proposal.sample, proposal.argmax))

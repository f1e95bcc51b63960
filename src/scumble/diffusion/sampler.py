"""Accept and renoise: which proposals enter the next canvas, and what stands elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scumble.diffusion.canvas import Canvas, Proposal, exact


class Sampler(Protocol):
    """A rule of acceptance. A request names one; the canvases of a pass that have rules of one kind share a call."""

    @classmethod
    def stacked(cls, rules: Sequence[Sampler], device: torch.device) -> Sampler:
        """One rule for S canvases, whose numbers are tensors [S, 1], from the rules of each."""
        ...

    def accept(self, canvas: Canvas, proposal: Proposal) -> Tensor:
        """Mask [S, L] of accepted positions, pinned ones among them."""
        ...


@dataclass(frozen=True)
class EntropyBound:
    """Accept the surest positions as long as together they stay nearly independent (Ben-Hamu et al., 2505.24857).

    In ascending order of entropy, a position is accepted while the entropies *before* it sum to ≤ bound: that sum
    bounds the joint mutual information of the accepted tokens. The surest position is always accepted.
    bound: nats, a number for all canvases or [S, 1].
    """

    bound: float | Tensor

    @classmethod
    def stacked(cls, rules: Sequence[EntropyBound], device: torch.device) -> EntropyBound:
        return cls(torch.tensor([[rule.bound] for rule in rules], dtype=torch.float64, device=device))

    def accept(self, canvas: Canvas, proposal: Proposal) -> Tensor:
        """Mask [S, L] of accepted positions. Pinned ones count as accepted and cost nothing."""
        entropy = torch.where(canvas.pinned, -1.0, proposal.entropy)  # pinned ones first in the order
        ordered, order = entropy.sort(dim=-1, stable=True)
        cost = exact(ordered.clamp_min(0.0))
        before = cost.cumsum(-1) - cost
        free = (~canvas.pinned).gather(-1, order)
        first_free = free & (free.cumsum(-1) == 1)
        within = before <= exact(torch.as_tensor(self.bound, dtype=torch.float64, device=cost.device))
        return torch.zeros_like(canvas.pinned).scatter(-1, order, within | first_free)


def renoise(canvas: Canvas, proposal: Proposal, accepted: Tensor, noise_ids: Tensor) -> Canvas:
    """The next canvas: the sample where accepted, a uniform random id elsewhere, pinned ids as they were."""
    return canvas.replace(torch.where(accepted, proposal.sample, noise_ids))

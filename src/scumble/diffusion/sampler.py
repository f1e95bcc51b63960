"""Accept and renoise: which proposals enter the next canvas, and what stands elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scumble.diffusion.canvas import Canvas, Proposal
from scumble.settings import BudgetRule


@dataclass(frozen=True)
class EntropyBound:
    """Accept the surest positions as long as together they stay nearly independent (Ben-Hamu et al., 2505.24857).

    In ascending order of entropy, a position is accepted while the entropies *before* it sum to ≤ bound: that sum
    bounds the joint mutual information of the accepted tokens. The surest position is always accepted.

    budget "accepted" (the release) sums over all accepted positions, so a canvas can settle only if the entropies of
    all its positions sum to ≤ bound. "changed" sums over those whose sample changes what stands on the canvas: a token
    that stood there was seen by all others in this pass, so nothing is accepted blindly with it. It costs nothing.
    """

    bound: float
    budget: BudgetRule = "accepted"

    def accept(self, canvas: Canvas, proposal: Proposal) -> Tensor:
        """Mask [L] of accepted positions. Pinned ones count as accepted and cost nothing."""
        held = canvas.pinned
        if self.budget == "changed":
            held = held | (proposal.sample == canvas.ids)
        entropy = torch.where(held, -1.0, proposal.entropy)  # held ones first in the order
        ordered, order = entropy.sort(stable=True)
        ordered = ordered.clamp_min(0.0)
        before = ordered.cumsum(0) - ordered
        free = (~held)[order]
        first_free = free & (free.cumsum(0) == 1)
        return torch.zeros_like(held).scatter(0, order, (before <= self.bound) | first_free)

    def renoise(self, canvas: Canvas, proposal: Proposal, accepted: Tensor, noise_ids: Tensor) -> Canvas:
        """The next canvas: the sample where accepted, a uniform random id elsewhere, pinned ids as they were."""
        return canvas.replace(torch.where(accepted, proposal.sample, noise_ids))

"""Accept and renoise: which proposals enter the next canvas, and what stands elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scumble.diffusion.canvas import Canvas, Proposal


@dataclass(frozen=True)
class EntropyBound:
    """Accept the surest positions as long as together they stay nearly independent (Ben-Hamu et al., 2505.24857).

    In ascending order of entropy, a position is accepted while the entropies *before* it sum to ≤ bound: that sum
    bounds the joint mutual information of the accepted tokens. The surest position is always accepted.
    """

    bound: float

    def accept(self, canvas: Canvas, proposal: Proposal) -> Tensor:
        """Mask [L] of accepted positions. Pinned ones count as accepted and cost nothing."""
        entropy = torch.where(canvas.pinned, -1.0, proposal.entropy)  # pinned first in the order
        ordered, order = entropy.sort(stable=True)
        ordered = ordered.clamp_min(0.0)
        before = ordered.cumsum(0) - ordered
        free = (~canvas.pinned)[order]
        first_free = free & (free.cumsum(0) == 1)
        return torch.zeros_like(canvas.pinned).scatter(0, order, (before <= self.bound) | first_free)

    def renoise(self, canvas: Canvas, proposal: Proposal, accepted: Tensor, noise_ids: Tensor) -> Canvas:
        """The next canvas: the sample where accepted, a uniform random id elsewhere, pinned ids as they were."""
        return canvas.replace(torch.where(accepted, proposal.sample, noise_ids))

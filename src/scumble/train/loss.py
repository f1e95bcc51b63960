"""Cross entropy through the tied, soft-capped head, without ever holding all logits.

The gradient of the loss with respect to the logits is known as soon as the logits are, so one sweep over chunks of
positions computes loss, gradient of the hidden states and gradient of the embedding; the logits are then dropped.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scumble.ops.training import TrainingOps

CHUNK = 1024  # positions at a time: [1024, 8192] float32 is 32 MB


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, ops: TrainingOps, hidden: Tensor, embedding: Tensor, targets: Tensor, weights: Tensor, cap: float
    ) -> Tensor:
        matrix = embedding.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_embedding = torch.zeros_like(embedding, dtype=torch.float32)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for start in range(0, hidden.shape[0], CHUNK):
            part = slice(start, start + CHUNK)
            total += ops.head_loss(
                hidden[part], matrix, targets[part, None], weights[part], cap, grad_hidden[part], grad_embedding
            )
        ctx.save_for_backward(grad_hidden, grad_embedding)
        return total.float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_embedding = ctx.saved_tensors
        (grad,) = grads
        return None, grad_hidden * grad.to(grad_hidden.dtype), grad_embedding * grad, None, None, None


def head_loss(
    ops: TrainingOps, hidden: Tensor, embedding: Tensor, targets: Tensor, weights: Tensor, cap: float
) -> Tensor:
    """Σ weights · cross entropy(softcap(hidden · embeddingᵀ), targets), a float32 scalar in nats.

    hidden [n, D], in the dtype in which the products are taken; embedding [V, D]; targets [n] int64;
    weights [n] float32 (0 ignores a position).
    """
    return _HeadLoss.apply(ops, hidden, embedding, targets, weights, cap)  # type: ignore[no-any-return]

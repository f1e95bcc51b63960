"""Cross entropy through the tied, soft-capped head, without ever holding all logits.

The gradient of the loss with respect to the logits is known as soon as the logits are, so one sweep over chunks of
positions computes loss, gradient of the hidden states and gradient of the embedding; the logits are then dropped.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scumble.kernels import training
from scumble.kernels.products import outer, product

CHUNK = 1024  # positions at a time: [1024, 8192] float32 is 32 MB


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, embedding: Tensor, targets: Tensor, weights: Tensor, cap: float) -> Tensor:
        matrix = embedding.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_embedding = torch.zeros_like(embedding, dtype=torch.float32)
        chunk_gradient = torch.empty_like(grad_embedding)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        lib = training.serving(hidden) if hidden.dtype is torch.bfloat16 and 0 < cap <= training.LARGEST_CAP else None
        for start in range(0, hidden.shape[0], CHUNK):
            part = slice(start, start + CHUNK)
            rows, wanted, weight = hidden[part], targets[part, None], weights[part]
            if lib is not None:
                grad = rows.new_empty(rows.shape[0], matrix.shape[0])
                product(rows, matrix.T, grad)
                losses = training.cross_entropy(lib, grad, wanted, weight, cap)  # the logits are now their gradient
                total += (losses * weight).sum(dtype=torch.float64)
                product(grad, matrix, grad_hidden[part])
                outer(grad, rows, chunk_gradient)
                grad_embedding += chunk_gradient
                continue
            squashed = (rows @ matrix.T).float().div_(cap).tanh_()  # tanh(z / cap)
            z = squashed * cap
            logsumexp = z.logsumexp(-1)
            losses = logsumexp - z.gather(1, wanted)[:, 0]
            total += (losses * weight).sum(dtype=torch.float64)
            grad = z.sub_(logsumexp[:, None]).exp_()  # softmax
            grad.scatter_add_(1, wanted, torch.full_like(wanted, -1.0, dtype=torch.float32))
            grad.mul_(weight[:, None]).mul_(1 - squashed.square_())  # chain rule through cap · tanh(z / cap)
            grad = grad.to(hidden.dtype)
            grad_hidden[part] = grad @ matrix
            grad_embedding += (grad.T @ rows).float()
        ctx.save_for_backward(grad_hidden, grad_embedding)
        return total.float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_embedding = ctx.saved_tensors
        (grad,) = grads
        return grad_hidden * grad.to(grad_hidden.dtype), grad_embedding * grad, None, None, None


def head_loss(hidden: Tensor, embedding: Tensor, targets: Tensor, weights: Tensor, cap: float) -> Tensor:
    """Σ weights · cross entropy(softcap(hidden · embeddingᵀ), targets), a float32 scalar in nats.

    hidden [n, D], in the dtype in which the products are taken; embedding [V, D]; targets [n] int64;
    weights [n] float32 (0 ignores a position).
    """
    return _HeadLoss.apply(hidden, embedding, targets, weights, cap)  # type: ignore[no-any-return]

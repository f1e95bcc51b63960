"""The operations of training: those of inference, differentiable, and two that only training has.

Training names its operations itself (train/precision.py); a forward in training calls the same methods of the layers.
Shapes: B rows, T tokens a row, S keys, H query heads, G key-value heads, K head_dim, V vocabulary, D hidden.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scumble.ops.reference import ReferenceOps, causal_mask


class TrainingOps(ReferenceOps):
    """In plain torch, on any device; under autocast as well."""

    def attend_batch(self, queries: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
        """queries [B, T, H, K] over keys and values [B, S, G, K] -> [B, T, H, K].

        window 0: all see all. Otherwise causal: token t, the (S - T + t)-th, sees itself and the window - 1 before it.
        """
        q, k, v = (x.transpose(1, 2) for x in (queries, keys, values))
        tokens, seen = q.shape[2], k.shape[2]
        if window in (0, seen) and (window == 0 or tokens == seen):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=window > 0, scale=1.0, enable_gqa=True)
        else:
            mask = causal_mask(tokens, seen, window, q.device)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0, enable_gqa=True)
        return out.transpose(1, 2)

    def head_loss(
        self,
        rows: Tensor,
        matrix: Tensor,
        wanted: Tensor,
        weights: Tensor,
        cap: float,
        to_rows: Tensor,
        to_matrix: Tensor,
    ) -> Tensor:
        """Σ weights · cross entropy(softcap(rows · matrixᵀ), wanted), a float64 scalar in nats, and its gradients.

        rows [n, D] and matrix [V, D] in one dtype, wanted [n, 1] int64, weights [n] float32. to_rows [n, D] is
        overwritten with the gradient of the rows; that of the matrix is added to to_matrix [V, D] float32.
        """
        squashed = (rows @ matrix.T).float().div_(cap).tanh_()  # tanh(z / cap)
        z = squashed * cap
        logsumexp = z.logsumexp(-1)
        losses = logsumexp - z.gather(1, wanted)[:, 0]
        grad = z.sub_(logsumexp[:, None]).exp_()  # softmax
        grad.scatter_add_(1, wanted, torch.full_like(wanted, -1.0, dtype=torch.float32))
        grad.mul_(weights[:, None]).mul_(1 - squashed.square_())  # chain rule through cap · tanh(z / cap)
        grad = grad.to(rows.dtype)
        to_rows.copy_(grad @ matrix)
        to_matrix += (grad.T @ rows).float()
        return (losses * weights).sum(dtype=torch.float64)


PLAIN_TRAINING = TrainingOps()

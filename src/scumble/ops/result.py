"""What the vocabulary operator returns. n positions, D hidden size, k alternatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from scumble.ops.classes import ClassStatistics


@dataclass(frozen=True)
class VocabResult:
    """Statistics of softmax(z) at n positions, where z = softcap(hidden · embeddingᵀ) / temperature.

    logsumexp [n] float32, of z. entropy [n] float32, nats, ≥ 0. argmax [n] int64, the lowest id on a tie.
    sample [n] int64 or None: the smallest id whose cumulative probability exceeds the position's uniform.
    soft [n, D] float32 or None: softmax(z) · embedding, not scaled by √D.
    top_ids [n, k] int64 and top_logprobs [n, k] float32, descending, or None.
    target_logprobs [n] float32 or None: of the ids that were asked for.
    classes: statistics by classes of ids (ops/classes.py), in the order in which they were asked for.
    """

    logsumexp: Tensor
    entropy: Tensor
    argmax: Tensor
    sample: Tensor | None = None
    soft: Tensor | None = None
    top_ids: Tensor | None = None
    top_logprobs: Tensor | None = None
    target_logprobs: Tensor | None = None
    classes: tuple[ClassStatistics, ...] = ()

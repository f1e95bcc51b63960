"""What is asked of the vocabulary operator, as one value that all backends take. n positions, V ids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scumble.ops.classes import Classified

Temperature = float | Tensor
"""One number for all positions, or float32 [n], one a position; > 0."""


@dataclass(frozen=True)
class VocabQuery:
    """The default asks for logsumexp, entropy and argmax of softmax(softcap(hidden · embeddingᵀ)), which are always
    given; each field changes the distribution or asks for more (ops/result.py has the answers).

    temperature: what logits are divided by.
    allowed: bool [V], or [n, V]; other ids get probability 0. A position must allow at least one.
    uniforms: float [n] in [0, 1), one a sample; None: no samples.
    want_soft: the soft embedding too, softmax · embedding.
    top: how many of the best ids and their log-probabilities, 0 … V.
    targets: int64 [n], ids whose log-probability is wanted.
    classes: statistics by classes of ids too (ops/classes.py), of some of the positions each.
    mask: int64 [n]; allowed is then bool [m, V], and this says which of its masks a position has.
    """

    temperature: Temperature = 1.0
    allowed: Tensor | None = None
    uniforms: Tensor | None = None
    want_soft: bool = False
    top: int = 0
    targets: Tensor | None = None
    classes: Sequence[Classified] = ()
    mask: Tensor | None = None

    def check(self, n: int, vocab: int) -> None:
        """Raises ValueError where a shape, a dtype or a plain number is out of range. Numbers that lie on a device are
        not looked at: that would wait for it."""
        heat = self.temperature
        if isinstance(heat, Tensor):
            _shape("temperature", heat, [(), (n,)], floating=True)
        elif not (math.isfinite(heat) and heat > 0):
            raise ValueError(f"temperature must be a number > 0, found {heat}")
        if self.mask is not None:
            _shape("mask", self.mask, [(n,)], torch.int64)
            if self.allowed is None or self.allowed.ndim != 2 or self.allowed.shape[1] != vocab:
                raise ValueError(f"with mask, allowed must be bool [masks, {vocab}]")
        elif self.allowed is not None:
            _shape("allowed", self.allowed, [(vocab,), (n, vocab)], torch.bool)
        if self.uniforms is not None:
            _shape("uniforms", self.uniforms, [(n,)], floating=True)
        if self.targets is not None:
            _shape("targets", self.targets, [(n,)], torch.int64)
        if not 0 <= self.top <= vocab:
            raise ValueError(f"top must be 0 … {vocab}, found {self.top}")
        for one in self.classes:
            if len(one.classes.of_token) != vocab:
                raise ValueError(f"classes must be of {vocab} ids, found {len(one.classes.of_token)}")
            if not 0 <= one.first <= one.last <= n:
                raise ValueError(f"classes must be of positions 0 … {n}, found {one.first} … {one.last}")

    def masks(self) -> Tensor | None:
        """Allowed ids as one mask [V] for all or one a position [n, V]; None: all ids."""
        if self.allowed is None or self.mask is None:
            return self.allowed
        return self.allowed[self.mask]


def _shape(
    name: str, found: Tensor, shapes: list[tuple[int, ...]], dtype: torch.dtype | None = None, floating: bool = False
) -> None:
    if tuple(found.shape) not in shapes or (found.dtype != dtype if dtype else found.is_floating_point() != floating):
        kind = str(dtype or "floating point").removeprefix("torch.")
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(
            f"{name} must be {kind} {wanted}, found {str(found.dtype).removeprefix('torch.')} {list(found.shape)}"
        )

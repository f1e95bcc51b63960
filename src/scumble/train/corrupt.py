"""What noise does to the canvases of a batch: which tokens it replaces, at what level."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scumble.train.config import Objective

PLAIN = Objective()


@dataclass(frozen=True)
class Noised:
    """Canvases of a batch. ids [B, C, L] after corruption, level t [B, C]; first: where they begin in a row, [C]."""

    ids: Tensor
    level: Tensor
    first: list[int]


def corrupt(
    ids: Tensor,
    prompt: int,
    length: int,
    vocab: int,
    generator: torch.Generator,
    objective: Objective = PLAIN,
    *,
    copies: int = 1,
    lengths: Tensor | None = None,
    drafts: Tensor | None = None,
) -> Noised:
    """Cut rows [B, prompt + C·L] into canvases behind the prompt and replace tokens at random.

    objective.canvases: keep that many of the C canvases, chosen uniformly (the same for all rows of the batch).
    objective.span_share: that share of the canvases is right but for one span of noise, which begins among the row's
    `lengths` [B] real tokens and runs, every other time, to the end of the canvas; its level is the noise's share.
    copies: corrupt every canvas that often.
    drafts [B, C·L]: objective.draft_share of the canvases hold these ids in place of the right ones; half of them as
    they are, half with noise like all others.
    """
    rows = ids.shape[0]
    canvases = ids[:, prompt:].unflatten(1, (-1, length))
    chosen = torch.arange(canvases.shape[1])
    if objective.canvases:
        chosen = torch.randperm(canvases.shape[1], generator=generator)[: objective.canvases].sort().values
    chosen = chosen.repeat(copies)
    canvases = canvases[:, chosen]
    first = [prompt + int(c) * length for c in chosen]
    level = torch.rand(rows, canvases.shape[1], generator=generator) ** objective.noise_power
    replaced = torch.rand(canvases.shape, generator=generator) < level[..., None]
    if objective.span_share:
        real = torch.full((rows,), ids.shape[1]) if lengths is None else lengths.cpu()
        spans = _spans((real[:, None] - torch.tensor(first)).clamp(1, length), length, generator)
        some = torch.rand(level.shape, generator=generator) < objective.span_share
        replaced = torch.where(some[..., None], spans, replaced)
        level = torch.where(some, spans.float().mean(-1), level)
    random_ids = torch.randint(vocab, canvases.shape, generator=generator)
    if drafts is not None and objective.draft_share:
        some = torch.rand(level.shape, generator=generator) < objective.draft_share
        clean = some & (torch.rand(level.shape, generator=generator) < 0.5)
        replaced, level = replaced & ~clean[..., None], level.masked_fill(clean, 0.0)
        drafted = drafts.unflatten(1, (-1, length))[:, chosen.to(ids.device)]
        canvases = torch.where(some.to(ids.device)[..., None], drafted, canvases)
    noised = torch.where(replaced.to(ids.device), random_ids.to(ids.device), canvases)
    return Noised(noised, level.to(ids.device), first)


def _spans(real: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """One span a canvas [B, C, L] bool, beginning among its `real` [B, C] first tokens."""
    begin = (torch.rand(real.shape, generator=generator) * real).long()
    end = begin + 1 + (torch.rand(real.shape, generator=generator) * (length - begin)).long()
    end = torch.where(torch.rand(real.shape, generator=generator) < 0.5, length, end)
    place = torch.arange(length)
    return (place >= begin[..., None]) & (place < end[..., None])

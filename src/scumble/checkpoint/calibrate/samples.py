"""Calibration samples: a context, encoded, and noisy canvases behind it, denoised, as generation runs the model.

A text is cut into samples of up to four canvases' length: three of context, one that is denoised. What ends with its
text has the end id and pads behind it, as answers have. Every canvas comes twice, at two noise levels; a canvas that is
not all noise is seen with the soft embedding of a first look, because passes after the first see theirs so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scumble.config import ModelConfig
from scumble.errors import InvalidRequest

LEVELS = ((1.0, 0.4), (0.7, 0.1))  # shares of replaced ids; samples take turns
CONTEXT = 3  # canvases' length
FEWEST = 8  # ids of a text that is worth it


@dataclass(frozen=True)
class Sample:
    """context [n] ids; canvases [m, L] ids with noise; levels: m shares of noise, 1: the first pass."""

    context: Tensor
    canvases: Tensor
    levels: tuple[float, ...]

    @property
    def tokens(self) -> int:
        return len(self.context) + self.canvases.numel()

    def positions(self) -> Tensor:
        """Of all its tokens in their text: the canvases stand in the same place."""
        n, (count, length) = len(self.context), self.canvases.shape
        return torch.cat((torch.arange(n), torch.arange(n, n + length).repeat(count)))

    def denoised(self) -> Tensor:
        """bool [tokens]"""
        return torch.arange(self.tokens) >= len(self.context)


def make_samples(texts: Iterable[list[int]], config: ModelConfig, most: int, file: Path) -> list[Sample]:
    """Samples of at most so many tokens in all, in the texts' order. Raises InvalidRequest where there is none."""
    out: list[Sample] = []
    left = most
    for ids in texts:
        for context, canvas in _cut(ids, config):
            sample = _sample(context, canvas, len(out), config)
            if sample.tokens > left:
                if out:
                    return out
                raise InvalidRequest(f"calibration tokens must be at least {sample.tokens} here, found {most}")
            out.append(sample)
            left -= sample.tokens
    if not out:
        raise InvalidRequest(f"{file}: no text of the calibration file has {FEWEST} tokens; give longer ones")
    return out


def _cut(ids: list[int], config: ModelConfig) -> Iterator[tuple[list[int], list[int]]]:
    length = config.canvas_length
    whole = min((CONTEXT + 1) * length, config.max_position_embeddings)
    first = ids[:1]
    while len(ids) >= FEWEST:
        block, ids = ids[:whole], ids[whole:]
        split = max(1, len(block) - length, len(block) // 2)
        canvas = block[split:]
        if not ids and config.eos_token_ids and len(canvas) < length:
            end = config.eos_token_ids[0]
            pad = end if config.pad_token_id is None else config.pad_token_id
            canvas = [*canvas, end, *[pad] * (length - len(canvas) - 1)]
        yield block[:split], canvas
        ids = first + ids if ids else ids  # every context begins as a text does


def _sample(context: list[int], canvas: list[int], index: int, config: ModelConfig) -> Sample:
    """Noise is a function of the sample's number."""
    levels = LEVELS[index % len(LEVELS)]
    generator = torch.Generator().manual_seed(index)
    clean = torch.tensor(canvas).expand(len(levels), -1)
    noise = torch.randint(config.vocab_size, clean.shape, generator=generator)
    replaced = torch.rand(clean.shape, generator=generator) < torch.tensor(levels)[:, None]
    return Sample(torch.tensor(context), torch.where(replaced, noise, clean), levels)

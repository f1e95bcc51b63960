"""The vocabulary operator on the positions of many canvases at once, each with its temperature and its allowed ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor

from scumble.engine.slots import Slot
from scumble.model import Transformer
from scumble.ops import VocabQuery, VocabResult
from scumble.ops.classes import Classified


class Head:
    """One call for all rows where the model's operations are batch-invariant, else one call a row."""

    def __init__(self, model: Transformer):
        self.model = model

    def look(self, slots: Sequence[Slot], hidden: Tensor, uniforms: Tensor) -> VocabResult:
        """hidden [N, D], uniforms [N] of all positions of the slots, one slot after another -> [N] of everything."""
        groups = (
            [list(slots)]
            if self.model.ops.batch_invariant
            else [list(own) for _, own in groupby(slots, lambda slot: slot.row)]
        )
        sizes = [sum(slot.length for slot in group) for group in groups]
        parts = zip(groups, hidden.split(sizes), uniforms.split(sizes), strict=True)
        return joined([self._look(*part) for part in parts])

    def _look(self, slots: Sequence[Slot], hidden: Tensor, uniforms: Tensor) -> VocabResult:
        device, temperatures = hidden.device, [slot.temperature for slot in slots]
        heat: float | Tensor = temperatures[0]
        if len(set(temperatures)) > 1:
            heat = (
                torch.tensor(temperatures).repeat_interleave(torch.tensor([slot.length for slot in slots])).to(device)
            )
        allowed, mask = masks(slots, hidden.shape[0], self.model.config.vocab_size)
        begins = accumulate((slot.length for slot in slots), initial=0)
        classes = [
            Classified(slot.law.classes, begin, begin + slot.length)
            for slot, begin in zip(slots, begins, strict=False)
            if slot.law is not None and slot.law.classes is not None
        ]
        query = VocabQuery(
            heat,
            None if allowed is None else allowed.to(device),
            None if all(slot.is_greedy for slot in slots) else uniforms,
            want_soft=not all(slot.is_last_pass for slot in slots),  # nothing follows that would read a soft embedding
            classes=classes,
            mask=None if mask is None else mask.to(device),
        )
        return self.model.vocab_head(hidden, query)


def masks(slots: Sequence[Slot], positions: int, vocab: int) -> tuple[Tensor | None, Tensor | None]:
    """The different masks of the slots' positions [m, V], the first of which allows all, and each position's [n]; or
    nothing, where no position has any."""
    found: dict[int, int] = {}  # by address: the same mask stands at many positions
    every = [torch.ones(vocab, dtype=torch.bool)]
    which = [0] * positions
    begins = accumulate((slot.length for slot in slots), initial=0)
    for slot, begin in zip(slots, begins, strict=False):
        for position, mask in slot.start.restriction.allowed.items():
            if id(mask) not in found:
                found[id(mask)] = len(every)
                every.append(mask)
            which[begin + position] = found[id(mask)]
    return (torch.stack(every), torch.tensor(which)) if found else (None, None)


def joined(results: Sequence[VocabResult]) -> VocabResult:
    """Results of some positions and then of others. Where not all have a soft embedding, those without get zeros."""
    if len(results) == 1:
        return results[0]
    out: dict[str, Any] = {"classes": tuple(one for result in results for one in result.classes)}
    for name in (field.name for field in fields(VocabResult) if field.name not in out):
        values = [getattr(result, name) for result in results]
        if name == "sample":
            values = [result.argmax if value is None else value for result, value in zip(results, values, strict=True)]
        if name == "soft" and any(value is not None for value in values):
            width = next(value.shape[1] for value in values if value is not None)
            values = [
                result.entropy.new_zeros(result.entropy.shape[0], width) if value is None else value
                for result, value in zip(results, values, strict=True)
            ]
        out[name] = None if any(value is None for value in values) else torch.cat(values)
    return VocabResult(**out)

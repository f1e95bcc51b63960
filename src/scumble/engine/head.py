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


class Head:
    """One call for all rows where the model's operations are batch-invariant, else one call a row."""

    def __init__(self, model: Transformer):
        self.model = model

    def __call__(self, hidden: Tensor, query: VocabQuery) -> VocabResult:
        """The operator itself, on hidden states [n, D]."""
        return self.model.vocab_head(hidden, query)

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
        temperatures = [slot.temperature for slot in slots]
        heat: float | Tensor = temperatures[0]
        if len(set(temperatures)) > 1:
            heat = torch.tensor(
                [t for t, slot in zip(temperatures, slots, strict=True) for _ in range(slot.length)],
                dtype=torch.float32, device=hidden.device,
            )  # fmt: skip
        is_greedy = all(slot.is_greedy for slot in slots)
        want_soft = not all(slot.is_last_pass for slot in slots)  # nothing follows that would read a soft embedding

        def call(places: Tensor | None, allowed: Tensor | None = None) -> VocabResult:
            def chosen(x: Tensor) -> Tensor:
                return x if places is None else x[places]

            query = VocabQuery(
                temperature=chosen(heat) if isinstance(heat, Tensor) else heat,
                allowed=allowed,
                uniforms=None if is_greedy else chosen(uniforms),
                want_soft=want_soft,
            )
            return self(chosen(hidden), query)

        masks = restricted(slots)
        if not masks:
            return call(None)
        taken = {place for _, places in masks for place in places}
        parts = [(None, [place for place in range(hidden.shape[0]) if place not in taken]), *masks]
        parts = [(mask, places) for mask, places in parts if places]
        results, order = [], []
        for mask, places in parts:
            where = torch.tensor(places, device=hidden.device)
            results.append(call(where, None if mask is None else mask.to(hidden.device)))
            order += places
        together: dict[str, Any] = vars(joined(results))
        back = torch.tensor(order).argsort().to(hidden.device)
        fields: dict[str, Any] = {name: None if value is None else value[back] for name, value in together.items()}
        return VocabResult(**fields)


def restricted(slots: Sequence[Slot]) -> list[tuple[Tensor | None, list[int]]]:
    """(mask [V], the packed positions that it holds for), each mask once."""
    found: dict[int, tuple[Tensor | None, list[int]]] = {}
    begins = accumulate((slot.length for slot in slots), initial=0)
    for slot, begin in zip(slots, begins, strict=False):
        for position, mask in slot.start.restriction.allowed.items():
            found.setdefault(id(mask), (mask, []))[1].append(begin + position)
    return list(found.values())


def joined(results: Sequence[VocabResult]) -> VocabResult:
    """Results of some positions and then of others. Where not all have a soft embedding, those without get zeros."""
    if len(results) == 1:
        return results[0]
    out: dict[str, Any] = {}
    for field in fields(VocabResult):
        values = [getattr(result, field.name) for result in results]
        if field.name == "sample":
            values = [result.argmax if value is None else value for result, value in zip(results, values, strict=True)]
        if field.name == "soft" and any(value is not None for value in values):
            width = next(value.shape[1] for value in values if value is not None)
            values = [
                result.entropy.new_zeros(result.entropy.shape[0], width) if value is None else value
                for result, value in zip(results, values, strict=True)
            ]
        out[field.name] = None if any(value is None for value in values) else torch.cat(values)
    return VocabResult(**out)

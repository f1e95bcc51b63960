"""A pass over canvases, or a step of rows that decode token by token, that reads and writes the same memory every time,
so that it can be captured once and replayed.

Everything in which two passes differ lies in tensors here: ids, soft embeddings, which pass it is, seeds, temperatures,
settings of rules, and what follows from the lengths of contexts (`Places`). `take` copies them in, what stays for all
passes of a canvas once a canvas; `compute` is the pass; its results are good until it runs again. The context of every
row is copied into pages of an arena, once a canvas too; canvases write their own keys behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from scumble.config import ModelConfig
from scumble.diffusion import Canvas
from scumble.engine.choose import TokenChoice, choose
from scumble.engine.denoise import Pass, decide
from scumble.engine.slots import Rules, Slot, Slots
from scumble.model import Cache, Transformer
from scumble.model.attention import Attend
from scumble.model.transformer import Ropes
from scumble.ops import VocabQuery
from scumble.ops.pages import PAGE, Destination, Pages

# Tokens that caches take up at once, after so many steps: fewer than PAGE, which a sliding layer's ring has to spare.
LATER = 64


class Arena:
    """Pages of keys and values for some rows, all layers. A row has as many pages as `bucket` tokens of context and a
    canvas need; in a sliding layer as many as its window does, used in turn."""

    def __init__(self, model: Transformer, rows: int, bucket: int, canvas: int):
        self.bucket, self.rows = bucket, rows
        seen = model.config.sliding_window - 1 + canvas
        self.each = {False: -(-(bucket + canvas) // PAGE), True: -(-seen // PAGE) + 1}  # pages a row; sliding or not
        self.layers: list[tuple[Tensor, Tensor]] = []
        for layer in model.config.layers:
            shape = rows * self.each[layer.is_sliding] * PAGE, layer.num_key_value_heads, layer.head_dim
            pair = [torch.empty(shape, dtype=model.dtype, device=model.device) for _ in range(2)]
            self.layers.append((pair[0], pair[1]))
        self.size = sum(part.nbytes for pair in self.layers for part in pair)
        self.sliding = [layer.is_sliding for layer in model.config.layers]
        self.held: dict[int, tuple[ref[Cache], int]] = {}  # by place: whose context lies there, and how long it is
        self.behind: dict[int, int] = {}  # by place: how long that cache is without what it has yet to take up

    @staticmethod
    def nbytes(config: ModelConfig, rows: int, bucket: int, canvas: int, number: int) -> int:
        """Of an arena; number: bytes of a number."""
        total = 0
        for layer in config.layers:
            tokens = config.sliding_window - 1 + canvas + PAGE if layer.is_sliding else bucket + canvas
            total += 2 * -(-tokens // PAGE) * PAGE * layer.num_key_value_heads * layer.head_dim
        return rows * total * number

    def tables(self, is_sliding: bool) -> Tensor:
        """int32 [rows, n]: the page of positions PAGE · j … of each row."""
        each, count = self.each[is_sliding], self.each[False]
        rows = [[row * each + page % each for page in range(count)] for row in range(self.rows)]
        return torch.tensor(rows, dtype=torch.int32, device=self.layers[0][0].device)

    def load(self, place: int, cache: Cache, config: ModelConfig) -> None:
        """A row's context, unless it lies there already: what a cache holds at a length never changes."""
        if self.held.get(place) is not None and self.held[place] == (ref(cache), cache.length):
            return
        self.let_go(place)
        for (keys, values), kept, layer in zip(self.layers, cache.layers, config.layers, strict=True):
            live, slots = slice(kept.start, kept.end), self._slots(place, layer.is_sliding, kept.first, cache.length)
            keys.index_copy_(0, slots, kept.keys[:, live].transpose(0, 1))
            values.index_copy_(0, slots, kept.values[:, live].transpose(0, 1))
        self.held[place] = (ref(cache), cache.length)

    def let_go(self, place: int) -> None:
        """A cache that has not taken up yet what was encoded here does so."""
        cache = self.held[place][0]() if place in self.held else None
        if cache is not None:
            _ = cache.layers
        self.held.pop(place, None)
        self.behind.pop(place, None)

    def encoded(self, place: int, cache: Cache) -> None:
        """One more token lies here; the cache takes it up when somebody looks into it, or LATER tokens on."""
        first = self.behind.pop(place, cache.length)
        cache.length += 1
        self.held[place], self.behind[place] = (ref(cache), cache.length), first
        cache.owe(partial(self._bring, place, ref(cache), first))
        if cache.length - first == LATER:
            _ = cache.layers

    def _bring(self, place: int, owner: ref[Cache], first: int) -> None:
        """Positions `first` on, to the end of a cache that owes them."""
        cache = owner()
        assert cache is not None
        self.behind.pop(place, None)
        for (keys, values), kept, is_sliding in zip(self.layers, cache.layers, self.sliding, strict=True):
            slots = self._slots(place, is_sliding, first, cache.length)
            kept.fill(kept.stored(keys[slots], values[slots]))

    def _slots(self, place: int, is_sliding: bool, first: int, last: int) -> Tensor:
        """Where positions first … last - 1 of a place lie."""
        each, positions = self.each[is_sliding], torch.arange(first, last, device=self.layers[0][0].device)
        return (place * each + positions // PAGE % each) * PAGE + positions % PAGE


@dataclass(frozen=True)
class Places:
    """What a forward needs to know of where its tokens stand: n tokens of each of S rows, behind the row's context, see
    each other and, in a window, the context before them. By whether a layer is sliding: what queries see, and slots
    [S · n] for new keys and values.
    """

    ropes: Ropes
    pages: dict[bool, Pages]
    slots: dict[bool, Tensor]

    @classmethod
    def behind(
        cls, model: Transformer, arena: Arena, tables: dict[bool, Tensor], lengths: Tensor, tokens: int
    ) -> Places:
        """Of contexts of lengths [S] int64."""
        positions = lengths[:, None] + torch.arange(tokens, device=lengths.device)  # [S, n]
        window, pages, slots = model.config.sliding_window, {}, {}
        high = (lengths[:, None] + tokens).expand_as(positions).flatten().int()
        for is_sliding, table in tables.items():
            first = (lengths - (window - 1)).clamp_min(0) if is_sliding else torch.zeros_like(lengths)
            low = first[:, None].expand_as(positions).flatten().int()
            longest = min(window - 1, arena.bucket) if is_sliding else arena.bucket
            pages[is_sliding] = Pages(table, low, high, tokens, longest + tokens)
            page = table.gather(1, positions // PAGE).long()
            slots[is_sliding] = (page * PAGE + positions % PAGE).flatten()
        return cls(model.ropes(positions.flatten()), pages, slots)

    def take(self, other: Places) -> None:
        for there, new in zip(self._varying(), other._varying(), strict=True):
            there.copy_(new)

    def _varying(self) -> Iterator[Tensor]:
        for tables in self.ropes.values():
            yield from tables
        for kind, pages in self.pages.items():
            yield from (pages.low, pages.high, self.slots[kind])


class PagedAttention(Attend):
    """Attend over an arena. New keys and values go behind the contexts."""

    def __init__(self, model: Transformer, arena: Arena, places: Places):
        self.ops, self.config, self.arena, self.places = model.ops, model.config, arena, places

    def destination(self, layer: int) -> Destination:
        return Destination(*self.arena.layers[layer], self.places.slots[self.config.layers[layer].is_sliding])

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return self.ops.attend_pages(queries, keys, values, self.places.pages[self.config.layers[layer].is_sliding])


class StaticPass:
    """For canvases like those of `like` (how many, how long, which kinds of rules), in an arena. want_soft: another
    pass follows for some. steps: the most passes of a canvas."""

    def __init__(self, model: Transformer, arena: Arena, like: Slots, want_soft: bool, steps: int):
        self.model, self.arena, self.want_soft = model, arena, want_soft
        count, length = like.canvas.ids.shape
        canvas = Canvas(torch.zeros_like(like.canvas.ids), torch.zeros_like(like.canvas.pinned))
        zeros = torch.zeros_like(like.pass_index)
        own = [template(slot) for slot in like.slots]  # a slot knows its place, and the living ones have theirs
        self.slots = Slots(own, canvas, canvas.ids.clone(), zeros, zeros, like.vocab)
        self.slots.unchanged, self.slots.pass_index = zeros.clone(), zeros.clone()
        self._taken: tuple[Rules, list[int]] | None = None
        device = model.device
        self.soft = torch.zeros(count * length, model.config.hidden_size, dtype=torch.float32, device=device)
        self.heat = torch.ones(count, steps, dtype=torch.float32, device=device)  # temperature, by pass
        self.denoise = torch.ones(count * length, 1, dtype=torch.bool, device=device)
        self.tables = {kind: arena.tables(kind)[:count].contiguous() for kind in (False, True)}
        self.places = self._places([0] * count)
        _ = self.slots.rules  # made on the host, so before the pass

    def _places(self, lengths: Sequence[int]) -> Places:
        there = torch.tensor(lengths, device=self.model.device)
        return Places.behind(self.model, self.arena, self.tables, there, self.slots.canvas.ids.shape[1])

    def take(self, inputs: Slots) -> None:
        """The canvases that the next `compute` is about; their contexts come into the arena."""
        slots, mine, lengths = inputs, self.slots, []
        for place, slot in enumerate(slots.slots):
            assert slot.row.cache is not None
            self.arena.load(place, slot.row.cache, self.model.config)
            lengths.append(slot.row.cache.length)
        for there, new in (
            (mine.canvas.ids, slots.canvas.ids), (mine.previous, slots.previous), (mine.unchanged, slots.unchanged),
            (mine.pass_index, slots.pass_index),
        ):  # fmt: skip
            there.copy_(new)
        for there, slot in zip(self.soft.split(mine.canvas.ids.shape[1]), slots.slots, strict=True):
            there.zero_() if slot.soft is None else there.copy_(slot.soft)
        if self._taken == (slots.rules, lengths):
            return
        mine.canvas.pinned.copy_(slots.canvas.pinned)  # canvases joined or left, or moved from one to the next
        for there, new in zip(tensors(mine.rules), tensors(slots.rules), strict=True):
            there.copy_(new)
        schedules = [slot.row.request.schedule for slot in slots.slots]
        steps = range(self.heat.shape[1])
        heat = [[schedule(min(step, schedule.passes - 1)) for step in steps] for schedule in schedules]
        self.heat.copy_(torch.tensor(heat, dtype=torch.float32))
        self.places.take(self._places(lengths))
        self._taken = slots.rules, lengths

    def compute(self) -> Pass:
        """The pass. Nothing in it waits for the device, or is copied from or to the host."""
        slots, (count, length) = self.slots, self.slots.canvas.ids.shape
        x = self.model.condition(slots.canvas.ids.flatten(), self.soft)
        attend = PagedAttention(self.model, self.arena, self.places)
        hidden = self.model.body(x, self.places.ropes, self.denoise, attend)

        uniforms, fresh = slots.rules.noise(self.model.ops)
        warm = self.heat.gather(1, slots.pass_index[:, None])
        query = VocabQuery(
            warm.expand(count, length).flatten(), uniforms=slots.rules.pack(uniforms), want_soft=self.want_soft
        )
        return decide(slots, self.model.vocab_head(hidden, query), uniforms, fresh)


@dataclass(frozen=True)
class Asked:
    """What steps of S rows take, on the host. tokens: the last id of each row; uniforms: to choose the next with."""

    tokens: Sequence[int]
    caches: Sequence[Cache]
    how: TokenChoice
    uniforms: Sequence[float]

    @property
    def numbers(self) -> Tensor:
        """All of it [7, S] float64, which holds ids and lengths as they are: what goes to the card goes in one copy."""
        ids, lengths = (torch.tensor(own).double() for own in (self.tokens, [cache.length for cache in self.caches]))
        uniforms = torch.tensor(self.uniforms, dtype=torch.float64)
        how = self.how.heat, self.how.top_k, self.how.top_p, self.how.is_greedy[:, None].double()
        return torch.stack((ids, lengths, uniforms, *(own[:, 0] for own in how)))


class StaticStep:
    """One encoded token of each of some rows, and the choice of the one after it. like: how many rows there are, and
    which ways of choosing."""

    def __init__(self, model: Transformer, arena: Arena, like: Asked):
        self.model, self.arena, self.like = model, arena, like.how
        rows, device = len(like.tokens), model.device
        self.numbers = torch.zeros(7, rows, dtype=torch.float64, device=device)
        self.denoise = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        self.tables = {kind: arena.tables(kind)[:rows].contiguous() for kind in (False, True)}

    def take(self, inputs: Asked) -> None:
        """The contexts come into the arena."""
        for place, cache in enumerate(inputs.caches):
            self.arena.load(place, cache, self.model.config)
        self.numbers.copy_(inputs.numbers)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Hidden states [S, D]; the next ids [S], and whether all logits are finite: [2, S] int64."""
        ids, lengths, uniforms, *ways = self.numbers
        heat, top_k, top_p, is_greedy = (own[:, None] for own in ways)
        how = replace(self.like, heat=heat, top_k=top_k, top_p=top_p, is_greedy=is_greedy[:, 0] > 0)
        places = Places.behind(self.model, self.arena, self.tables, lengths.long(), 1)
        attend = PagedAttention(self.model, self.arena, places)
        hidden = self.model.body(self.model.embed(ids.long()), places.ropes, self.denoise, attend)
        logits = self.model.logits(hidden)
        return hidden, torch.stack((choose(logits, how, uniforms), logits.amax(-1).isfinite()))


def template(slot: Slot) -> Slot:
    return Slot(slot.row, slot.candidate, slot.index, slot.start)


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors of rules, in one order for rules of one kind."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Rules):
        for part in (value.samplers, value.stoppings, value.passes, value.is_greedy, value.takes_sample, value.address):
            yield from tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)
    elif is_dataclass(value):
        for part in fields(value):
            yield from tensors(getattr(value, part.name))

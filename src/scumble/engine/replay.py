"""Passes over canvases alone, and single steps, as captured CUDA graphs: one launch in the place of some hundred.

A graph is captured for a number of rows, a length of canvas and a bucket of context (static_pass.py), when such a pass
comes for the second time. A step is captured up to the choice of the next token. What needs the host in the middle of a
pass is not captured and runs as ever: prompts, texts to read, laws, masks of ids, noise that is handed in, canvases of
unequal lengths. Results are the same, bit for bit.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from scumble.checkpoint.memory import available
from scumble.diffusion import Canvas, EntropyBound, Proposal, SeededNoise, StableAndConfident
from scumble.engine.denoise import Pass
from scumble.engine.slots import Slots
from scumble.engine.static_pass import Arena, Asked, StaticPass, StaticStep
from scumble.model import Cache, Transformer

log = logging.getLogger("scumble")
_eager: ContextVar[bool] = ContextVar("eager", default=False)

ROWS = 8  # with more, a card has enough to do while the host launches the next operation
BUCKETS = (1024, 4096, 16_384, 65_536, 262_144)  # tokens of context
STEPS = 64  # temperatures are held for a multiple of so many passes
KEPT = 32  # graphs: eight numbers of rows, with and without soft embeddings, and as many of steps
SHARE = 0.25  # of the free memory, for an arena; caches may take half, and the tensors of a pass need some


@contextmanager
def eager() -> Iterator[None]:
    """Inside, whoever steps an engine runs passes operation by operation: to measure them, and to compare."""
    token = _eager.set(True)
    try:
        yield
    finally:
        _eager.reset(token)


Key = tuple[Any, ...]


class Static(Protocol):
    """Something that is computed in the same memory every time (static_pass.py)."""

    def take(self, inputs: Any) -> None: ...

    def compute(self) -> Any: ...


class Replays:
    """The captured passes of a model."""

    def __init__(self, model: Transformer):
        self.model = model
        self.passes: dict[Key, tuple[Static, Callable[[], Any]]] = {}
        self.seen: Counter[Key] = Counter()
        self.arena: Arena | None = None
        self.limit = math.inf  # an arena of so many bytes has been too large
        self.graphs: Graphs | None = None
        self.is_off = not model.ops.attends_pages

    def run(self, slots: Slots) -> Pass | None:
        """What a pass makes of these canvases; None: it is none that is replayed."""
        if self.is_off or _eager.get() or not fits(slots):
            return None
        bucket = self._bucket([slot.row.cache for slot in slots.slots])
        steps = -(-max(slot.row.request.schedule.passes for slot in slots.slots) // STEPS) * STEPS
        want_soft = not all(slot.is_last_pass for slot in slots.slots)

        def make(arena: Arena) -> StaticPass:
            return StaticPass(self.model, arena, slots, want_soft, steps)

        key = ("pass", *slots.canvas.ids.shape, bucket, steps, want_soft)
        done = self._replayed(key, len(slots), bucket, make, slots)
        return None if done is None else copied(done)

    def step(self, asked: Asked) -> tuple[Tensor, Tensor] | None:
        """One token of each row, encoded; the caches take it up. Hidden states [S, D], and the next ids with whether
        numbers are finite [2, S]; None: not replayed."""
        rows, how = len(asked.tokens), asked.how
        if self.is_off or _eager.get() or rows > ROWS:
            return None
        bucket = self._bucket(asked.caches)
        key = ("step", rows, bucket, how.draws, how.cuts)
        done = self._replayed(key, rows, bucket, lambda arena: StaticStep(self.model, arena, asked), asked)
        if done is None:
            return None
        assert self.arena is not None
        for place, cache in enumerate(asked.caches):
            self.arena.encoded(place, cache)
        hidden, found = done
        return hidden.clone(), found

    def _bucket(self, caches: Sequence[Cache | None]) -> int:
        """Tokens of context that room is needed for; 0: more than there are buckets for, or rounded ones."""
        if any(cache is not None and cache.form is not None for cache in caches):
            return 0
        context = max(cache.length for cache in caches if cache is not None)
        bucket = next((size for size in BUCKETS if context < size), 0)
        if bucket and self.arena is not None:  # a larger one serves as well, and graphs hold its addresses
            bucket = max(bucket, self.arena.bucket)
        return bucket

    def forget(self) -> None:
        """Let go of all memory."""
        if self.arena is not None:
            for place in list(self.arena.held):
                self.arena.let_go(place)
        self.passes.clear()
        self.arena = self.graphs = None

    def _replayed(self, key: Key, rows: int, bucket: int, make: Callable[[Arena], Static], inputs: Any) -> Any | None:
        """What the pass of this key makes of its inputs; None where it is not replayed: it comes for the first time, or
        there is no memory for it. An error of a card or its driver ends all replaying."""
        self.seen[key] += 1
        if not bucket or (key not in self.passes and self.seen[key] < 2):
            return None
        try:
            arena = self._room(rows, bucket)
            if arena is None:
                return None
            if key not in self.passes:
                if len(self.passes) == KEPT:  # the one that was used longest ago
                    del self.passes[next(iter(self.passes))]
                static = make(arena)
                static.take(inputs)
                self.passes[key] = static, self._captured(static)
            else:
                self.passes[key] = self.passes.pop(key)
                self.passes[key][0].take(inputs)
            return self.passes[key][1]()
        except torch.OutOfMemoryError:
            log.warning("no memory for captured passes of %d rows and %d tokens of context", rows, bucket)
            self.limit = self._nbytes(rows, bucket) if self.arena is None else self.arena.size
            self.forget()
            return None
        except Exception:  # whatever a driver says: the pass runs as ever
            log.exception("passes are not captured any more")
        self.forget()
        self.is_off = True
        return None

    def _captured(self, static: Static) -> Callable[[], Any]:
        """A call that runs it again. Without a card: by itself, operation by operation."""
        if self.model.device.type != "cuda":
            return static.compute
        if self.graphs is None:
            self.graphs = Graphs(self.model.device)
        return self.graphs.captured(static)

    def _room(self, rows: int, bucket: int) -> Arena | None:
        """The arena, for so many rows of such a context; None: there is no memory for it. One that is too small goes on
        serving smaller passes then."""
        arena = self.arena
        if arena is not None and arena.bucket >= bucket and arena.rows >= rows:
            return arena
        rows = ROWS if rows > 1 or (arena is not None and arena.rows > 1) else 1
        wanted, there = self._nbytes(rows, bucket), 0 if arena is None else arena.size
        room = available(self.model.device) if self.model.device.type == "cuda" else None
        if wanted >= self.limit or (room is not None and wanted > SHARE * (room.bytes + there)):
            return None
        self.forget()
        self.arena = Arena(self.model, rows, bucket, self.model.config.canvas_length)
        return self.arena

    def _nbytes(self, rows: int, bucket: int) -> int:
        """Of an arena."""
        config = self.model.config
        return Arena.nbytes(config, rows, bucket, config.canvas_length, self.model.dtype.itemsize)


def fits(slots: Slots) -> bool:
    """Whether nothing in a pass over these canvases needs the host."""
    return len(slots) <= ROWS and all(
        slot.law is None
        and not slot.start.restriction.allowed
        and slot.error is None
        and type(slot.start.noise) is SeededNoise
        and type(slot.row.request.sampler) is EntropyBound
        and type(slot.row.request.stopping) is StableAndConfident
        and slot.length == slots.slots[0].length
        for slot in slots.slots
    )


class Graphs:
    """Where passes are captured on a card. All share one stream and one pool of memory, in which they run one after
    another: torch reuses a pool's memory for what is captured on the same stream."""

    def __init__(self, device: torch.device):
        self.device = device
        with torch.cuda.device(device):
            self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def captured(self, static: Static) -> Callable[[], Any]:
        """A call that runs the pass again, on the stream of whoever calls it. Run once before, outside the graph: then
        kernels are compiled, and what is made at first use is there."""
        with torch.cuda.device(self.device):
            before = torch.cuda.current_stream()
            try:
                self.stream.wait_stream(before)
                try:
                    with torch.cuda.stream(self.stream):
                        static.compute()
                finally:  # an error comes before the card is done with what was launched until then
                    before.wait_stream(self.stream)
                graph = torch.cuda.CUDAGraph()
                # By thread: others may allocate, or ask how much memory there is.
                with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
                    result = static.compute()
            finally:
                torch.cuda.set_stream(before)  # a capture that fails leaves its own stream behind

        def replay() -> Any:
            graph.replay()
            return result

        return replay


def copied(done: Pass) -> Pass:
    """Results that the next replay does not overwrite."""

    def own(value: Tensor) -> Tensor:
        return value.clone()

    proposal = Proposal(*map(own, (done.proposal.argmax, done.proposal.sample, done.proposal.entropy)))
    following = Canvas(own(done.following.ids), own(done.following.pinned))
    return replace(
        done, proposal=proposal, accepted=own(done.accepted), following=following, unchanged=own(done.unchanged),
        flags=own(done.flags), soft=None if done.soft is None else own(done.soft),
    )  # fmt: skip

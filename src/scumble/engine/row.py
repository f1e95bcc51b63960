"""A row: one request's place in the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scumble.decode import Answer, PassDone, Request, TokensCommitted, live
from scumble.decode.steps import Command, Denoise, Denoised, Life, Prefill, Read, Step
from scumble.diffusion import SeededNoise
from scumble.engine.memory import CHUNK
from scumble.model import Cache

BLOCK = 64  # tokens whose uniforms are made at a time


@dataclass(frozen=True)
class Failed:
    """The request ended with an error, which concerns no other."""

    error: Exception


Event = PassDone | TokensCommitted | Answer | Failed
Deliver = Callable[[Event], None]


@dataclass(frozen=True, eq=False)
class Piece:
    """Ids [n] that were encoded in one forward, and the canvases (ids) whose first pass was in it."""

    ids: Tensor
    canvases: tuple[Tensor, ...] = ()


def split(pieces: list[Piece], tokens: int) -> tuple[list[Piece], list[Piece]]:
    """The pieces of the first so many tokens, and the rest; a piece may be cut."""
    for number, piece in enumerate(pieces):
        if tokens < len(piece.ids):
            cut = [Piece(piece.ids[:tokens])] if tokens else []
            return [*pieces[:number], *cut], [Piece(piece.ids[tokens:], piece.canvases), *pieces[number + 1 :]]
        tokens -= len(piece.ids)
    return pieces, []


@dataclass(eq=False)
class Row:
    """deliver: takes the row's events, on the thread that steps the engine. wants_drafts: PassDone among them.

    wants: what its life has asked for and not yet been sent. unread: what of its ids is not encoded yet.
    reserved: bytes that its cache takes or will take for what it wants.
    encoded: what its cache holds. again: what it held when the row was preempted, and does not hold yet; until it does,
    the denoiser has set its canvases aside.
    denoised: the candidates of a canvas that are done. served: the step in which its ids last moved on.
    cached: tokens of its prompt that it found encoded when it began.
    names, tail, is_findable, reused: of its context's blocks, see engine/prefix.py.
    """

    request: Request
    deliver: Deliver
    wants_drafts: bool = False
    life: Life = field(init=False)
    cache: Cache | None = None
    wants: Command | None = None
    unread: Tensor | None = None
    denoised: dict[int, Denoised] = field(default_factory=dict)
    reserved: int = 0
    encoded: list[Piece] = field(default_factory=list)
    again: list[Piece] = field(default_factory=list)
    served: int = 0
    committed: int = 0
    cached: int = 0
    names: list[bytes] = field(default_factory=list)
    tail: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    is_findable: bool = True
    reused: int = 0
    is_over: bool = False
    _uniforms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.life = live(self.request)

    def advance(self, result: object) -> Answer | None:
        """Send the life its result and note what it wants next; its Answer, if it wants nothing any more."""
        try:
            item = self.life.send(result)
            while isinstance(item, TokensCommitted):
                self.committed += len(item.ids)
                self.deliver(item)
                item = next(self.life)
        except StopIteration as stop:
            return stop.value
        self.wants, self.denoised = item, {}
        self.unread = item.ids if isinstance(item, Prefill | Step) else None
        if isinstance(item, Denoise) and item.uncached:
            self.unread = torch.tensor(item.uncached)
        return None

    def forget(self, may_cut_anywhere: bool) -> None:
        """Give the cache back. What it held is encoded again in the same pieces, or, where the cuts make no difference,
        in whole chunks."""
        again = [*self.encoded, *self.again]
        if may_cut_anywhere and again:
            again = [Piece(ids) for ids in torch.cat([piece.ids for piece in again]).split(CHUNK)]
        self.cache, self.again, self.encoded = None, again, []
        self.names, self.tail, self.is_findable = [], self.tail[:0], True

    @property
    def tokens(self) -> int:
        """That its cache must hold for what it wants now, a canvas or texts behind the context included."""
        if self.wants is None:  # it has not begun
            return self.request.prompt.shape[0] + self.behind
        encoded = self.cache.length if self.cache is not None else 0
        coming = sum(len(piece.ids) for piece in self.again) + (0 if self.unread is None else len(self.unread))
        return encoded + coming + self.behind

    @property
    def behind(self) -> int:
        """Tokens that a pass puts behind the context and does not keep."""
        if isinstance(self.wants, Read):
            return max(map(len, self.wants.texts))
        index = self.wants.index if isinstance(self.wants, Denoise) else 0
        return self.request.canvas_length(index) if self.request.decoder == "diffusion" else 1

    @property
    def pass_tokens(self) -> int:
        """What it may put into a pass again and again: its longest canvas, or one token."""
        request = self.request
        return request.longest * len(request.noises) if request.decoder == "diffusion" else 1

    def uniform(self, index: int) -> float:
        """Token number `index`'s own number in [0, 1): canvas `index`, pass 0, position 0."""
        if self.request.config.temperature == 0:
            return 0.0
        noise = self.request.noises[0]
        if type(noise) is not SeededNoise:
            return float(noise.uniform(index, 0, 1)[0])
        if index % BLOCK == 0:
            self._uniforms = noise.first_uniforms(index, BLOCK).tolist()
        return self._uniforms[index % BLOCK]


@dataclass(frozen=True)
class Outcome:
    """What a pass means for a row: the result that its life waited for, an event to tell, or the error that ends it."""

    row: Row
    result: object = None
    told: PassDone | None = None
    error: Exception | None = None

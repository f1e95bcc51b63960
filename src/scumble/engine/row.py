"""A row: one request's place in the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scumble.decode import Answer, PassDone, Request, TokensCommitted, live
from scumble.decode.steps import Command, Denoise, Life, Read
from scumble.diffusion import SeededNoise
from scumble.model import Cache

BLOCK = 64  # tokens whose uniforms are made at a time


@dataclass(frozen=True)
class Failed:
    """The request ended with an error, which concerns no other."""

    error: Exception


Event = PassDone | TokensCommitted | Answer | Failed
Deliver = Callable[[Event], None]


@dataclass(eq=False)
class Row:
    """deliver: takes the row's events, on the thread that steps the engine. wants_drafts: PassDone among them.

    Its text is the prompt and the ids of its answer so far; the cache holds the text's first `cache.length` tokens.
    wants: what its life has asked for and not yet been sent; None: it has not begun.
    reserved: bytes that the engine counts for it. served: the step in which its text last moved on.
    blocks, is_findable: of its context's beginning, see engine/prefix.py. cached: tokens of the prompt that it found
    encoded when it began. was_preempted: it has begun more than once.
    """

    request: Request
    deliver: Deliver
    wants_drafts: bool = False
    life: Life = field(init=False)
    answer: list[int] = field(default_factory=list)
    cache: Cache | None = None
    wants: Command | None = None
    reserved: int = 0
    served: int = 0
    cached: int = 0
    was_preempted: bool = False
    blocks: list[bytes] = field(default_factory=list)
    is_findable: bool = True
    is_over: bool = False
    _uniforms: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.life = live(self.request)

    def advance(self, result: object) -> Answer | None:
        """Send the life its result and note what it wants next; its Answer, if it wants nothing any more."""
        try:
            item = self.life.send(result)
            while isinstance(item, TokensCommitted):
                self.answer += item.ids
                self.deliver(item)
                item = next(self.life)
        except StopIteration as stop:
            return stop.value
        self.wants = item
        return None

    def forget(self) -> None:
        """Give the cache back; what it held is to be encoded again."""
        self.cache, self.blocks, self.is_findable, self.was_preempted = None, [], True, True

    # --- its text -----------------------------------------------------------------------------------------------------

    @property
    def length(self) -> int:
        """Tokens of its text."""
        return self.request.prompt.shape[0] + len(self.answer)

    @property
    def unread(self) -> int:
        """Tokens of its text that are not encoded yet."""
        return self.length - (0 if self.cache is None else self.cache.length)

    def ids(self, begin: int, end: int) -> Tensor:
        """Of its text, from position begin to before end [n]."""
        prompt = self.request.prompt
        answer = self.answer[max(0, begin - len(prompt)) : max(0, end - len(prompt))]
        return torch.cat((prompt[begin:end], torch.tensor(answer, dtype=torch.int64)))

    # --- what it needs ------------------------------------------------------------------------------------------------

    @property
    def tokens(self) -> int:
        """That its cache must hold for what it wants now: its text, and what a pass puts behind it for a while."""
        if isinstance(self.wants, Read):
            return self.length + max(map(len, self.wants.texts))
        index = self.wants.index if isinstance(self.wants, Denoise) else 0
        return self.length + (self.request.canvas_length(index) if self.request.decoder == "diffusion" else 1)

    @property
    def most_tokens(self) -> int:
        """That its cache can ever have to hold."""
        return self.request.prompt.shape[0] + self.request.max_new_tokens + self.request.longest

    @property
    def pass_tokens(self) -> int:
        """What it may put into a pass again and again: its longest canvas, of all candidates, or one token."""
        return self.request.longest * len(self.request.noises) if self.request.decoder == "diffusion" else 1

    def uniform(self, index: int) -> float:
        """Token number `index`'s own number in [0, 1): canvas `index`, pass 0, position 0."""
        if self.request.config.temperature == 0:
            return 0.0
        if index not in self._uniforms:  # noise that is handed in is asked once, also where a step is computed again
            noise = self.request.noises[0]
            is_seeded = isinstance(noise, SeededNoise)
            drawn = noise.first_uniforms(index, BLOCK) if is_seeded else noise.uniform(index, 0, 1)
            self._uniforms = dict(enumerate(torch.as_tensor(drawn).tolist(), index))
        return self._uniforms[index]


@dataclass(frozen=True)
class Outcome:
    """What a pass means for a row: the result that its life waited for, an event to tell, or the error that ends it."""

    row: Row
    result: object = None
    told: PassDone | None = None
    error: Exception | None = None

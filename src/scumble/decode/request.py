"""A request, checked: the only one there is. From here on nothing is unset and nothing can be out of range. And the
words in which its selector is asked which text a canvas commits."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from scumble.decode.constraint import Constraint
from scumble.decode.steps import Ids, Read, Reading
from scumble.diffusion import LinearTemperature, Noise, Sampler, Stopping
from scumble.events import TokenLogprobs
from scumble.settings import Decoder, GenerationConfig


@dataclass(frozen=True)
class Draft:
    """Ids [n ≥ 1] that might be committed, and whether they came to their end."""

    ids: Ids
    ended: bool


@dataclass(frozen=True)
class Text:
    """What is committed. logprobs: one a token, if asked for; last [1, D]: hidden state of the last token, if read;
    reads: how often was read."""

    ids: Ids
    ended: bool
    logprobs: tuple[TokenLogprobs, ...] | None = None
    last: Tensor | None = None
    reads: int = 0


@dataclass(frozen=True)
class Place:
    """Where in an answer a canvas stands. behind [1, D]: hidden state of the token before it, if texts are read.
    given: the part of the request's draft that lies on the canvas. room: tokens that a text may have."""

    behind: Tensor | None
    given: Ids
    room: int
    constraint: Constraint


Choosing = Generator[Read, tuple[Reading, ...], Text]


class Selector(Protocol):
    """Which text a canvas commits (select.py has the two that there are)."""

    reads: bool  # whether texts are read, which needs the hidden state of the token before them

    def choose(self, request: Request, place: Place, drafts: Sequence[Draft]) -> Choosing:
        """What to commit of a canvas whose candidates became these drafts."""
        ...


@dataclass(frozen=True, eq=False)
class Request:
    """prompt: ids [n ≥ 1] int64. config: every setting, filled in. vocab: how many ids the model has.

    noises: one a candidate (see `best_of`). draft: ids that the answer starts from, from its position 0; positions
    count from the start of the answer, across canvases. eos_ids: what ends the answer; none with ignore_eos. pad_id:
    what stands where a canvas holds nothing; None where it is to count like any id. silent_ids: ends and pads, in any
    case; nothing of them is text.
    shortest, longest: of canvases; they double from one to the other.
    typed: text at the prompt's end that the answer's first token repeats; for the text's edge, not for the engine.
    parse: what the answer's text means, for the text's edge as well.
    """

    prompt: Tensor
    config: GenerationConfig
    vocab: int
    max_new_tokens: int
    shortest: int
    longest: int
    eos_ids: frozenset[int]
    pad_id: int | None
    silent_ids: frozenset[int]
    schedule: LinearTemperature
    sampler: Sampler
    stopping: Stopping
    selector: Selector
    noises: tuple[Noise, ...] = ()
    constraint: Constraint = field(default_factory=Constraint)
    draft: tuple[int, ...] = ()
    typed: str = ""
    parse: Callable[[str], Any] | None = None

    @property
    def decoder(self) -> Decoder:
        assert self.config.decoder is not None  # every setting is filled in
        return self.config.decoder

    def canvas_length(self, index: int) -> int:
        """Of canvas number `index`."""
        return min(self.shortest << min(index, 32), self.longest)

    def drafted(self, begin: int, length: int) -> tuple[int, ...]:
        """The part of the draft that lies on a canvas."""
        return self.draft[begin : begin + length]

    def cut(self, ids: Sequence[int], room: int) -> Draft:
        """The first `room` ids, up to the end of the answer and including what ends it; and whether there was an end.

        That is an end-of-sequence id. Models also fill the rest of a canvas with pads and leave the end id out: then
        the first of these pads is the end. One pad alone is not, since a canvas of one or two tokens could be it by
        chance.
        """
        kept = tuple(ids[:room])
        for position, token in enumerate(kept):
            if token in self.eos_ids:
                return Draft(kept[: position + 1], True)
        filled = len(kept)
        while filled and kept[filled - 1] == self.pad_id:
            filled -= 1
        return Draft(kept[: filled + 1], True) if len(kept) - filled > 1 else Draft(kept, False)

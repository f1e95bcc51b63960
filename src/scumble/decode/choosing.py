"""What a canvas's candidates become, and what is committed of them: the words between a selector and the main loop."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from torch import Tensor

from scumble.decode.constraint import Constraint
from scumble.decode.steps import Ids, Read, Reading
from scumble.events import TokenLogprobs


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

"""Constraints: which ids may stand where in an answer, and which canvases are jointly valid.

A constraint is a value. It says what the next canvas may hold (`restrict`), and what it is once ids have been
committed (`after`): so state goes from canvas to canvas, and a row can start anew from any point of its answer.
Positions count from where the answer stands: position 0 is the next token.

`Pins`, `OneOf` (the ids that an answer may begin with, see text/healing.py) and `Forbidden` restrict positions one by
one. A constraint on whole canvases, such as a grammar, gives its restriction a `Law`, which takes the place of
independent positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from scumble.diffusion import Canvas, Proposal
from scumble.errors import InvalidRequest
from scumble.ops.classes import ClassStatistics, TokenClasses


@dataclass(frozen=True)
class Restriction:
    """What one canvas, or the next token, may hold; nothing in here: anything.

    pinned: position -> the id that stands there. allowed: position -> mask [V] bool of the ids that may stand there.
    Positions that share a mask share the tensor itself: then the vocabulary operator is called once for all of them.
    law: joint validity; it may keep state from pass to pass, so it belongs to one canvas (one candidate).
    """

    pinned: Mapping[int, int] = field(default_factory=dict)
    allowed: Mapping[int, Tensor] = field(default_factory=dict)
    law: Law | None = None


@dataclass(frozen=True)
class Look:
    """What a law sees of one pass over its canvas of L positions.

    canvas: as it went into the pass [1, L]. proposal: what independent positions would propose [1, L].
    temperature: what the logits are divided by. uniforms [L]: one a position, of this pass; None: propose the argmax.
    logsumexp [L], of the logits divided by it. classes: statistics by the law's own classes, at all positions.
    """

    canvas: Canvas
    proposal: Proposal
    temperature: float
    uniforms: Tensor | None
    logsumexp: Tensor
    classes: ClassStatistics | None


class Law(Protocol):
    """Joint validity of one canvas. classes: of ids, by which it wants statistics of every pass; None: none."""

    classes: TokenClasses | None

    def propose(self, look: Look) -> Proposal:
        """The proposal [1, L] under the law: argmax is the most probable valid canvas, sample a valid draw (one of the
        two is committed in the end), entropy that of each position under the law. Acceptance and stopping go by these.
        """
        ...


class Constraint:
    """Any answer at all; the constraints below say what they forbid of it."""

    def restrict(self, length: int, room: int, vocab: int) -> Restriction:
        """What the next `length` positions may hold, of an answer that has `room` tokens left for them and all that
        follows. A new restriction for every canvas and candidate. The next token alone: length 1."""
        return Restriction()

    def after(self, ids: Sequence[int]) -> Constraint:
        """The constraint on what follows these ids, once they are committed."""
        return self

    def check(self, max_new_tokens: int, vocab: int) -> None:
        """Raises InvalidRequest where no answer of so many tokens could do what is asked."""

    def fits(self, ids: Sequence[int]) -> bool:
        """Whether a text may follow that did not come from `restrict`: a draft, or what a revision makes of it."""
        return True

    @property
    def is_movable(self) -> bool:
        """Whether ids may move to other positions, as revisions move them."""
        return True


@dataclass(frozen=True)
class Pins(Constraint):
    """Ids that stand at certain positions: position ≥ 0 -> id."""

    ids: Mapping[int, int]

    def restrict(self, length: int, room: int, vocab: int) -> Restriction:
        return Restriction(pinned={position: token for position, token in self.ids.items() if position < length})

    def after(self, ids: Sequence[int]) -> Constraint:
        rest = {position - len(ids): token for position, token in self.ids.items() if position >= len(ids)}
        return Pins(rest) if rest else Constraint()

    def fits(self, ids: Sequence[int]) -> bool:
        return all(ids[position] == token for position, token in self.ids.items() if position < len(ids))

    @property
    def is_movable(self) -> bool:
        return False


@dataclass(frozen=True)
class OneOf(Constraint):
    """The answer begins with one of these ids."""

    ids: tuple[int, ...]

    def restrict(self, length: int, room: int, vocab: int) -> Restriction:
        return Restriction(allowed={0: only(self.ids, vocab)})

    def after(self, ids: Sequence[int]) -> Constraint:
        return Constraint() if ids else self

    def fits(self, ids: Sequence[int]) -> bool:
        return not ids or ids[0] in self.ids


@dataclass(frozen=True)
class Forbidden(Constraint):
    """Ids that stand nowhere in the answer."""

    ids: frozenset[int]

    def restrict(self, length: int, room: int, vocab: int) -> Restriction:
        mask = ~only(self.ids, vocab)
        return Restriction(allowed=dict.fromkeys(range(length), mask))

    def fits(self, ids: Sequence[int]) -> bool:
        return self.ids.isdisjoint(ids)


class Joint(Constraint):
    """A constraint on whole answers. It has to know what others ask of later positions, or it would begin what cannot
    end."""

    def restrict(self, length: int, room: int, vocab: int) -> Restriction:
        return self.restrict_beside(length, room, vocab, Restriction())

    def check(self, max_new_tokens: int, vocab: int) -> None:
        self.check_beside(max_new_tokens, Restriction())

    def restrict_beside(self, length: int, room: int, vocab: int, others: Restriction) -> Restriction:
        """`restrict`; others: what others ask of all `room` positions."""
        raise NotImplementedError

    def check_beside(self, max_new_tokens: int, others: Restriction) -> None:
        """`check`; others: what others ask of all these positions."""
        raise NotImplementedError


@dataclass(frozen=True)
class All(Constraint):
    """Several constraints at once, at most one of them on whole answers."""

    parts: tuple[Constraint, ...]

    def __post_init__(self) -> None:
        assert sum(isinstance(part, Joint) for part in self.parts) < 2, "two laws for one answer"

    def restrict(self, length: int, room: int, vocab: int) -> Restriction:
        found = self._apart(length, room, vocab)
        for part in self.parts:
            if isinstance(part, Joint):
                found = both(part.restrict_beside(length, room, vocab, self._apart(room, room, vocab)), found)
        return found

    def check(self, max_new_tokens: int, vocab: int) -> None:
        for part in self.parts:
            if isinstance(part, Joint):
                part.check_beside(max_new_tokens, self._apart(max_new_tokens, max_new_tokens, vocab))

    def _apart(self, length: int, room: int, vocab: int) -> Restriction:
        """What is asked of positions one by one."""
        found = Restriction()
        for part in self.parts:
            if not isinstance(part, Joint):
                found = both(found, part.restrict(length, room, vocab))
        return found

    def after(self, ids: Sequence[int]) -> Constraint:
        return together(part.after(ids) for part in self.parts)

    def fits(self, ids: Sequence[int]) -> bool:
        return all(part.fits(ids) for part in self.parts)

    @property
    def is_movable(self) -> bool:
        return all(part.is_movable for part in self.parts)


def together(parts: Iterable[Constraint]) -> Constraint:
    """All of them, as simply as possible."""
    kept = tuple(part for part in parts if type(part) is not Constraint)
    if len(kept) < 2:
        return kept[0] if kept else Constraint()
    return All(kept)


def both(one: Restriction, two: Restriction) -> Restriction:
    """Masks that stand at several positions stay one tensor. Raises InvalidRequest where nothing is left."""
    joined: dict[tuple[int, int], Tensor] = {}
    allowed = {**one.allowed, **two.allowed}
    for position in sorted(one.allowed.keys() & two.allowed.keys()):
        left, right = one.allowed[position], two.allowed[position]
        key = id(left), id(right)
        if key not in joined:
            joined[key] = left & right
            if not joined[key].any():
                raise InvalidRequest(
                    f"the constraints on the answer, together, leave no id for position {position} of what comes "
                    "next; loosen one of them"
                )
        allowed[position] = joined[key]
    return Restriction({**one.pinned, **two.pinned}, allowed, one.law or two.law)


def only(ids: Iterable[int], vocab: int) -> Tensor:
    """Mask [V] of some ids."""
    mask = torch.zeros(vocab, dtype=torch.bool)
    mask[torch.tensor(sorted(ids), dtype=torch.int64)] = True
    return mask

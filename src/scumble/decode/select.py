"""Selectors: which text a canvas commits, of those that its candidates became.

A denoised canvas is checked by nobody: its positions were accepted each for itself. The same weights can read it from
left to right in one more pass and say how likely it is as a text. A selector decides what is read and what is kept;
the main loop knows nothing of it.

Revision puts a text right where it surprises the causal model, one token a round. Neighbours that a canvas settles in
the same pass do not know of each other: a word may stand twice, or be missing. The causal model reads the whole text
and notices, since it would have gone on differently there. So its own token is tried in that place, in place of the one
that stands there or before it, and so is the text without that token. All are read together; what reads better is
revised further in the next round.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

from scumble.decode.request import Choosing, Draft, Place, Request, Text
from scumble.decode.steps import Read, Reading
from scumble.events import TokenLogprobs

PLACES = 2  # of a text, at a time: those where the causal model's own token is likelier by most


class AsDenoised:
    """The first draft as it stands, which no other pass has to read."""

    reads = False

    def choose(self, request: Request, place: Place, drafts: Sequence[Draft]) -> Choosing:
        return Text(drafts[0].ids, drafts[0].ended)
        yield  # a generator, as every selector is


@dataclass(frozen=True)
class Likeliest:
    """The text with the highest mean log-probability a token under the causal model, of equals the earliest.

    The end id counts as a token: an unlikely end weighs against a text as any unlikely token does.
    rounds: of revision, for the best texts so far; what reads better is revised further. Ids
    that may not move are never revised.
    A draft that the caller gave is one of the texts, as it stands: it is right already if no candidate reads better.
    """

    rounds: int = 0
    reads = True
    revised = 4  # texts that a round starts from

    def choose(self, request: Request, place: Place, drafts: Sequence[Draft]) -> Choosing:
        rounds = self.rounds if place.constraint.is_movable else 0
        has_choice = len(drafts) > 1 or self.rounds > 0
        texts = [*drafts]
        if place.given and has_choice and place.constraint.is_movable and place.constraint.fits(place.given):
            texts.append(request.cut(place.given, place.room))
        known = {text.ids for text in texts}
        read = yield from self._read(request, place, texts, 1 if rounds else 0)
        reads = 1
        for _ in range(rounds):
            changed = []
            for text in sorted(read, key=rank, reverse=True)[: self.revised]:
                for ids in edits(text.logprobs or ()):
                    new = request.cut(ids, place.room)
                    if new.ids not in known and place.constraint.fits(new.ids):
                        known.add(new.ids)
                        changed.append(new)
            if not changed:  # the best texts are as good as they get
                break
            read += yield from self._read(request, place, changed, 1)
            reads += 1
        best = max(read, key=rank)
        asked = request.config.logprobs
        logprobs = None if asked is None else tuple(replace(one, top=one.top[:asked]) for one in best.logprobs or ())
        return replace(best, logprobs=logprobs, reads=reads)

    def _read(
        self, request: Request, place: Place, texts: Sequence[Draft], alternatives: int
    ) -> Generator[Read, tuple[Reading, ...], list[Text]]:
        assert place.behind is not None
        alternatives = max(alternatives, request.config.logprobs or 0)
        readings = yield Read(tuple(text.ids for text in texts), place.behind, alternatives)
        return [
            Text(text.ids, text.ended, reading.logprobs, reading.last)
            for text, reading in zip(texts, readings, strict=True)
        ]


def rank(text: Text) -> float:
    """Mean log-probability a token, in nats."""
    assert text.logprobs
    return sum(one.logprob for one in text.logprobs) / len(text.logprobs)


def edits(text: Sequence[TokenLogprobs]) -> list[tuple[int, ...]]:
    """What one change makes of a text that was read with at least one alternative a token; most surprising place first,
    and none where nothing surprises."""
    ids = tuple(one.token_id for one in text)
    surprises = [one.top[0][1] - one.logprob for one in text]
    places = sorted(range(len(ids)), key=lambda place: -surprises[place])[:PLACES]
    changed = []
    for place in places:
        own = text[place].top[0][0]
        if own != ids[place]:
            before, behind = ids[:place], ids[place + 1 :]
            changed += [(*before, own, *behind), (*before, own, *ids[place:]), (*before, *behind)]
    return [one for one in changed if one]

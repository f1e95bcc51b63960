"""Revision: a text is put right where it surprises the causal model, one token a round.

Neighbours that a canvas settles in the same pass do not know of each other: a word may stand twice, or be missing. The
causal model reads the whole text in one pass and notices, since it would have gone on differently there. So its own
token is tried in that place, in place of the one that stands there or before it, and so is the text without that token.
All are read together; what reads better is revised further in the next round.
"""

from __future__ import annotations

from collections.abc import Sequence

from scumble.events import TokenLogprobs

PLACES = 2  # of a text, at a time: those where the causal model's own token is likelier by most


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

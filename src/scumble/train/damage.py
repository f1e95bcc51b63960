"""Code as people break it: what the repair task is trained and tested on.

Every kind of damage is one slip of a hand: letters swapped, a bracket gone, a wrong indent, a word lost. Text in, text
out; the same generator state gives the same damage on every machine.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable

MOST_SLIPS = 3
_WORD = re.compile(r"[^\W\d_]{3,}")
_PIECE = re.compile(r"\w+|[^\w\s]")
_BRACKETS = "()[]{}"
_SIMILAR = ("== =", "< >", "+ -", ": ;", ", .", "' \"")  # signs that are taken for one another
_SWAPS = {sign: other for pair in _SIMILAR for sign, other in itertools.permutations(pair.split())}


def damage(text: str, rng: random.Random) -> str:
    """1 … 3 slips somewhere in the text, a second and a third being rarer. A text too short for one stays as it is."""
    slips = 1
    while slips < MOST_SLIPS and rng.random() < 0.4:
        slips += 1
    for _ in range(slips):
        kinds = list(KINDS)
        rng.shuffle(kinds)
        for kind in kinds:
            broken = kind(text, rng)
            if broken is not None and broken != text:
                text = broken
                break
    return text


def _typo(text: str, rng: random.Random) -> str | None:
    """Inside one word: two letters swapped, one lost, doubled, or another in its place."""
    words = list(_WORD.finditer(text))
    if not words:
        return None
    word = rng.choice(words)
    place = rng.randrange(word.start(), word.end() - 1)
    letter, following = text[place], text[place + 1]
    instead = rng.choice([following + letter, following, letter * 2 + following, rng.choice(_LETTERS) + following])
    return text[:place] + instead + text[place + 2 :]


def _bracket(text: str, rng: random.Random) -> str | None:
    """A bracket lost, doubled, or of another kind."""
    places = [place for place, letter in enumerate(text) if letter in _BRACKETS]
    if not places:
        return None
    place = rng.choice(places)
    return text[:place] + rng.choice(["", text[place] * 2, rng.choice(_BRACKETS)]) + text[place + 1 :]


def _lost(text: str, rng: random.Random) -> str | None:
    """A word or a sign lost."""
    pieces = list(_PIECE.finditer(text))
    if len(pieces) < 2:
        return None
    piece = rng.choice(pieces)
    return text[: piece.start()] + text[piece.end() :]


def _operator(text: str, rng: random.Random) -> str | None:
    """A sign taken for a similar one."""
    places = [found for found in _PIECE.finditer(text) if found.group() in _SWAPS]
    if not places:
        return None
    sign = rng.choice(places)
    return text[: sign.start()] + _SWAPS[sign.group()] + text[sign.end() :]


def _indent(text: str, rng: random.Random) -> str | None:
    """A line behind the first moved in or out."""
    lines = text.split("\n")
    places = [number for number, line in enumerate(lines) if number and line.strip()]
    if not places:
        return None
    number = rng.choice(places)
    line = lines[number]
    lines[number] = " " * rng.choice([1, 2, 4]) + line if rng.random() < 0.5 else line[rng.choice([1, 2, 4]) :]
    return "\n".join(lines) if line.strip() in lines[number] else None


_LETTERS = "abcdefghijklmnopqrstuvwxyz"
KINDS: tuple[Callable[[str, random.Random], str | None], ...] = (_typo, _typo, _bracket, _lost, _operator, _indent)

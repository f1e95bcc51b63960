"""Regular languages as trees. Front ends (JSON Schema, patterns, choices, grammars) make them; `automaton` reads them.

A leaf stands for bytes, for code points, or for one special token (a turn marker, never its characters). Code points
are written as UTF-8, and inside a JSON string (`quoted`) each has exactly one spelling: itself, or the shortest escape
where JSON asks for one. One spelling per text is what makes intersection and difference of string languages exact.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from scumble.errors import InvalidRequest

LAST_CODE_POINT = 0x10FFFF
Ranges = tuple[tuple[int, int], ...]  # of code points, both ends included, ascending, apart from each other


class StructureError(InvalidRequest):
    """A structure cannot be guaranteed: unsupported or contradictory, or larger than the limits allow."""


@dataclass(frozen=True, slots=True)
class Empty:
    """No text at all, not even the empty one."""


@dataclass(frozen=True, slots=True)
class Text:
    """Exactly these bytes; b"" is the empty text."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Chars:
    """One code point out of some ranges, as UTF-8; `quoted`: as it is spelled inside a JSON string.

    Inside a JSON string, control characters that have no short escape (\\n, \\t …) are left out.
    """

    ranges: Ranges
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class Symbol:
    """One special token, by its id."""

    id: int


@dataclass(frozen=True, slots=True)
class Seq:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Alt:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`part` at least `least` and at most `most` times, with `between` between two; None: any number of times."""

    part: Node
    least: int
    most: int | None
    between: Node = Text(b"")


@dataclass(frozen=True, slots=True)
class Members:
    """Some of the items in their order, then `loop` any number of times, with a separator between two.

    items: (language, is it required?). least, most: of all together; where `least` counts, all repetitions of the loop
    count as one (two of them may be the same member of an object).
    """

    items: tuple[tuple[Node, bool], ...]
    separator: Node
    loop: Node
    least: int = 0
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """An automaton by its edges (state, low byte, high byte, next state) from state 0; ends: where a text may end.

    A low and high of 256 + k mean the special token symbols[k]. Inside Both and Except there may be none.
    """

    edges: tuple[tuple[int, int, int, int], ...]
    ends: frozenset[int]
    symbols: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Both:
    """Texts that every part accepts. Symbols may not occur inside."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Except:
    """Texts of `whole` that are none of `without`. Symbols may not occur inside."""

    whole: Node
    without: Node


Node = Empty | Text | Chars | Symbol | Seq | Alt | Repeat | Members | Table | Both | Except
EMPTY, EPSILON = Empty(), Text(b"")


def seq(*parts: Node) -> Node:
    """Parts one after another; neighbouring texts are joined."""
    flat: list[Node] = []
    for part in parts:
        if isinstance(part, Empty):
            return EMPTY
        for piece in part.parts if isinstance(part, Seq) else (part,):
            if isinstance(piece, Text) and flat and isinstance(flat[-1], Text):
                flat[-1] = Text(flat[-1].data + piece.data)
            elif piece != EPSILON:
                flat.append(piece)
    return EPSILON if not flat else flat[0] if len(flat) == 1 else Seq(tuple(flat))


def alt(*parts: Node) -> Node:
    """Any one of the parts."""
    flat: list[Node] = []
    for part in parts:
        flat += part.parts if isinstance(part, Alt) else () if isinstance(part, Empty) else (part,)
    return EMPTY if not flat else flat[0] if len(flat) == 1 else Alt(tuple(flat))


def repeat(part: Node, least: int = 0, most: int | None = None, between: Node = EPSILON) -> Node:
    """`part` from `least` to `most` times, with `between` between two."""
    if most is not None and most < least:
        return EMPTY
    if isinstance(part, Empty):
        return EPSILON if least == 0 else EMPTY
    if most == 0 or (part == EPSILON and between == EPSILON):
        return EPSILON
    return part if (least, most) == (1, 1) else Repeat(part, least, most, between)


def optional(part: Node) -> Node:
    return repeat(part, 0, 1)


def both(*parts: Node) -> Node:
    if any(isinstance(part, Empty) for part in parts):
        return EMPTY
    return parts[0] if len(parts) == 1 else Both(tuple(parts))


def without(whole: Node, *parts: Node) -> Node:
    unwanted = alt(*parts)
    return whole if isinstance(unwanted, Empty) or isinstance(whole, Empty) else Except(whole, unwanted)


def text(value: str) -> Text:
    """A literal text, as UTF-8."""
    try:
        return Text(value.encode())
    except UnicodeEncodeError as error:
        raise StructureError(
            f"a text holds the lone surrogate U+{ord(value[error.start]):04X}, which UTF-8 cannot write; remove it"
        ) from None


def quoted_text(value: str) -> Text:
    """What stands between the quotation marks of a JSON string."""
    return Text(text(json.dumps(value, ensure_ascii=False)).data[1:-1])


def normal(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Ranges in ascending order, joined where they touch; surrogates are no characters and are left out."""
    pieces: list[tuple[int, int]] = []
    for low, high in ranges:
        pieces += [(low, min(high, 0xD7FF)), (max(low, 0xE000), high)]
    joined: list[tuple[int, int]] = []
    for low, high in sorted((low, high) for low, high in pieces if low <= high):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return tuple(joined)


def complement(ranges: Ranges) -> Ranges:
    """All other code points."""
    gaps, at = [], 0
    for low, high in normal(ranges):
        gaps.append((at, low - 1))
        at = high + 1
    return normal([*gaps, (at, LAST_CODE_POINT)])


ANY = normal([(0, LAST_CODE_POINT)])
ANY_CHAR, QUOTED_CHAR = Chars(ANY), Chars(ANY, quoted=True)

Sequence_ = tuple[tuple[int, int], ...]  # byte ranges one after another


@lru_cache(maxsize=1024)
def byte_sequences(chars: Chars) -> tuple[Sequence_, ...]:
    """The spellings of a set of code points: sequences of byte ranges, disjoint."""
    if not chars.quoted:
        return tuple(_utf8(chars.ranges))
    found = list(_utf8(_without_points(chars.ranges, [*range(0x20), 0x22, 0x5C])))
    for point in (0x08, 0x09, 0x0A, 0x0C, 0x0D, 0x22, 0x5C):
        if any(low <= point <= high for low, high in chars.ranges):
            found.append(tuple((byte, byte) for byte in quoted_text(chr(point)).data))
    return tuple(found)


def _without_points(ranges: Ranges, points: list[int]) -> Ranges:
    pieces = []
    for low, high in ranges:
        for point in points:
            if low <= point <= high:
                pieces.append((low, point - 1))
                low = point + 1
        pieces.append((low, high))
    return normal(pieces)


def _utf8(ranges: Ranges) -> Iterable[Sequence_]:
    """Cut ranges where the length of UTF-8 or a leading byte changes, until every byte varies on its own."""
    for low, high in ranges:
        yield from _utf8_range(low, high)


def _utf8_range(low: int, high: int) -> Iterable[Sequence_]:
    for last in (0x7F, 0x7FF, 0xFFFF):
        if low <= last < high:
            yield from _utf8_range(low, last)
            yield from _utf8_range(last + 1, high)
            return
    for bits in (6, 12, 18):  # the part that the last one, two, three bytes spell
        mask = (1 << bits) - 1
        if low & ~mask != high & ~mask and high > 0x7F:
            if low & mask:
                yield from _utf8_range(low, low | mask)
                yield from _utf8_range((low | mask) + 1, high)
                return
            if high & mask != mask:
                yield from _utf8_range(low, (high & ~mask) - 1)
                yield from _utf8_range(high & ~mask, high)
                return
    yield tuple(zip(chr(low).encode(), chr(high).encode(), strict=True))

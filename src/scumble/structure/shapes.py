"""The normal form of a JSON Schema: a choice between shapes, each a plain conjunction of what its values must be.

`Document.shapes` follows $ref, spreads allOf, anyOf, oneOf, not and if over the choice, and joins conjunctions. Objects
and arrays stay in layers, one for each schema that speaks of them; the schemas of a property are joined only when its
values are looked at, so a recursive schema has a finite normal form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from scumble.structure.numbers import Numbers, as_decimal
from scumble.structure.tree import Node

KINDS = frozenset(["null", "boolean", "number", "string", "array", "object"])


@dataclass(frozen=True)
class Located:
    """A schema and where it stands, as a JSON pointer."""

    schema: Any
    path: str
    negated: bool = False

    @property
    def key(self) -> tuple[Any, bool]:
        return (self.schema if isinstance(self.schema, bool) else id(self.schema)), self.negated


Conjunction = tuple[Located, ...]  # all of them hold
NOTHING = Located(False, "#")


@dataclass(frozen=True)
class Strings:
    """Texts that match every wanted language and no unwanted one, of `least` … `most` code points."""

    wanted: tuple[Node, ...] = ()
    unwanted: tuple[Node, ...] = ()
    least: int = 0
    most: int | None = None

    def __and__(self, other: Strings) -> Strings | None:
        bounds = [most for most in (self.most, other.most) if most is not None]
        most, least = min(bounds, default=None), max(self.least, other.least)
        if most is not None and most < least:
            return None
        wanted = tuple(dict.fromkeys(self.wanted + other.wanted))
        return Strings(wanted, tuple(dict.fromkeys(self.unwanted + other.unwanted)), least, most)


@dataclass(frozen=True)
class ObjectLayer:
    """What one schema says of an object's members. others: the schema of members that it does not name, or None.

    evaluates: for unevaluatedProperties; what a schema says that must not hold has looked at nothing.
    """

    properties: dict[str, Located] = field(default_factory=dict)
    patterns: tuple[tuple[str, Located], ...] = ()
    others: Located | None = None
    names: Located | None = None
    evaluates: bool = True


@dataclass(frozen=True)
class ArrayLayer:
    prefix: tuple[Located, ...] = ()
    items: Located | None = None


@dataclass(frozen=True)
class Shape:
    """One alternative. values: only these (enum, const), already judged by nobody; banned: none of these.

    required: names in the order in which schemas ask for them. members, length: least and most number.
    explicit: a schema has named the kinds; where none has, keywords of some kinds mean that those are meant.
    """

    kinds: frozenset[str] = KINDS
    explicit: bool = False
    values: tuple[Any, ...] | None = None
    banned: tuple[Any, ...] = ()
    numbers: Numbers = field(default_factory=Numbers)
    strings: Strings = field(default_factory=Strings)
    arrays: tuple[ArrayLayer, ...] = ()
    length: tuple[int, int | None] = (0, None)
    unique: bool = False
    contains: tuple[Located, ...] = ()
    objects: tuple[ObjectLayer, ...] = ()
    required: tuple[str, ...] = ()
    members: tuple[int, int | None] = (0, None)
    hints: frozenset[str] = frozenset()  # kinds that some keyword speaks of

    def __and__(self, other: Shape) -> Shape | None:
        """What both allow; None where that is seen to be nothing."""
        kinds = self.kinds & other.kinds
        numbers, strings = self.numbers & other.numbers, self.strings & other.strings
        length, members = _both_bounds(self.length, other.length), _both_bounds(self.members, other.members)
        kinds -= {
            kind
            for kind, part in (("number", numbers), ("string", strings), ("array", length), ("object", members))
            if part is None
        }
        values = self.values if other.values is None else other.values
        if self.values is not None and other.values is not None:
            values = tuple(value for value in self.values if any(same(value, one) for one in other.values))
        if values is not None:
            banned = self.banned + other.banned
            values = tuple(v for v in values if kind_of(v) in kinds and not any(same(v, one) for one in banned))
        if not kinds or values == ():
            return None
        return Shape(
            kinds,
            self.explicit or other.explicit,
            values,
            self.banned + other.banned,
            numbers or Numbers(),
            strings or Strings(),
            self.arrays + other.arrays,
            length or (0, None),
            self.unique or other.unique,
            self.contains + other.contains,
            self.objects + other.objects,
            tuple(dict.fromkeys(self.required + other.required)),
            members or (0, None),
            self.hints | other.hints,
        )

    def member(self, name: str, matches: Any) -> Conjunction:
        """The schemas that hold for a member; matches(pattern, name) judges patternProperties."""
        found: list[Located] = []
        for layer in self.objects:
            own = [layer.properties[name]] if name in layer.properties else []
            own += [schema for pattern, schema in layer.patterns if matches(pattern, name)]
            found += own or ([] if layer.others is None else [layer.others])
        return tuple(found)

    def item(self, index: int) -> Conjunction:
        """The schemas that hold for an item; index may be beyond every prefix."""
        found: list[Located] = []
        for layer in self.arrays:
            if index < len(layer.prefix):
                found.append(layer.prefix[index])
            elif layer.items is not None:
                found.append(layer.items)
        return tuple(found)

    @property
    def prefix(self) -> int:
        """How many items have a schema of their own."""
        return max((len(layer.prefix) for layer in self.arrays), default=0)


def only(*kinds: str, **parts: Any) -> Shape:
    """A shape of some kinds, named by a schema."""
    return Shape(kinds=frozenset(kinds), explicit=True, **parts)


def kind_of(value: Any) -> str:
    """The JSON type of a Python value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def same(one: Any, two: Any) -> bool:
    """Equality of JSON values: 1 equals 1.0, but not true."""
    kind = kind_of(one)
    if kind != kind_of(two):
        return False
    if kind == "array":
        return len(one) == len(two) and all(map(same, one, two))
    if kind == "object":
        return one.keys() == two.keys() and all(same(one[name], two[name]) for name in one)
    return decimal(one) == decimal(two) if kind == "number" else one == two


def decimal(value: int | float) -> Decimal:
    return as_decimal(value)


def _both_bounds(one: tuple[int, int | None], two: tuple[int, int | None]) -> tuple[int, int | None] | None:
    least = max(one[0], two[0])
    most = min((bound for bound in (one[1], two[1]) if bound is not None), default=None)
    return None if most is not None and most < least else (least, most)


def joined(one: Sequence[Shape], two: Sequence[Shape]) -> list[Shape]:
    """Every way to satisfy one alternative of each."""
    return [shape for a in one for b in two if (shape := a & b) is not None]


def silent(shapes: Sequence[Shape]) -> list[Shape]:
    """The same, but for unevaluatedProperties their schemas have looked at nothing."""
    return [replace(one, objects=tuple(replace(layer, evaluates=False) for layer in one.objects)) for one in shapes]

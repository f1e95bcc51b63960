"""JSON Schema keywords of types, single values, numbers and strings, and of sizes."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from scumble.errors import shown
from scumble.structure.document import Document, Reader
from scumble.structure.formats import NAMES as FORMATS
from scumble.structure.formats import format_tree
from scumble.structure.numbers import Numbers
from scumble.structure.shapes import KINDS, Located, Shape, Strings, decimal, only

_WHOLE_RANGES = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1), "uint32": (0, 2**32 - 1)}


def type_keyword(doc: Document, at: Located, negated: bool) -> list[Shape]:
    named = doc.value(at, "type", str, list)
    names = [named] if isinstance(named, str) else named
    for name in names:
        if not isinstance(name, str) or name not in {*KINDS, "integer"}:
            doc.fail(f"{at.path}/type", f"the type {shown(name)} is not known")
    kinds = {name for name in names if name != "integer"}
    whole = "integer" in names and "number" not in kinds
    if negated:
        shapes = [only(*(KINDS - kinds - ({"number"} if whole else set())))]
        if whole:
            shapes.append(only("number", numbers=Numbers(integer=False)))
        return [shape for shape in shapes if shape.kinds]
    shapes = [only(*kinds)] if kinds else []
    return [*shapes, only("number", numbers=Numbers(integer=True))] if whole else shapes


def enum(doc: Document, at: Located, negated: bool) -> list[Shape]:
    values = tuple(doc.value(at, "enum", list))
    return [Shape(banned=values)] if negated else [Shape(values=values)] if values else []


def const(doc: Document, at: Located, negated: bool) -> list[Shape]:
    value = (at.schema["const"],)
    return [Shape(banned=value)] if negated else [Shape(values=value)]


def bound(keyword: str) -> Reader:
    lower = keyword.endswith("inimum")

    def read(doc: Document, at: Located, negated: bool) -> list[Shape]:
        value = at.schema[keyword]
        is_open = keyword.startswith("exclusive")
        if isinstance(value, bool) and is_open:  # draft 4: a flag beside minimum or maximum, read there
            return [] if negated else [Shape()]
        if not is_open:
            is_open = at.schema.get("exclusiveMinimum" if lower else "exclusiveMaximum") is True
        bound = decimal(doc.value(at, keyword, int, float))
        if lower != negated:
            numbers = Numbers(low=bound, low_open=is_open != negated)
        else:
            numbers = Numbers(high=bound, high_open=is_open != negated)
        if negated:
            return [only("number", numbers=numbers)]
        return [Shape(numbers=numbers, hints=frozenset(["number"]))]

    return read


def multiple_of(doc: Document, at: Located, negated: bool) -> list[Shape]:
    multiple = decimal(doc.value(at, "multipleOf", int, float))
    if multiple <= 0:
        doc.fail(f"{at.path}/multipleOf", f"multipleOf must be above 0, found {multiple}")
    if negated:
        doc.left_out.append(f"{at.path}/multipleOf")
        return []
    return [Shape(numbers=Numbers(multiples=(multiple,)), hints=frozenset(["number"]))]


def size(keyword: str, kind: str, field: str) -> Reader:
    """minLength, maxItems …: a bound on a count; its negation is the bound on the other side."""

    def read(doc: Document, at: Located, negated: bool) -> list[Shape]:
        count = doc.count(at, keyword)
        least, most = (count, None) if keyword.startswith("min") else (0, count)
        if negated:
            least, most = (0, count - 1) if keyword.startswith("min") else (count + 1, None)
            if most is not None and most < 0:
                return []
        part: Any = Strings(least=least, most=most) if kind == "string" else (least, most)
        sized: dict[str, Any] = {field: part}
        return [only(kind, **sized)] if negated else [Shape(hints=frozenset([kind]), **sized)]

    return read


def pattern(doc: Document, at: Located, negated: bool) -> list[Shape]:
    found = doc.parsed(at, at.schema["pattern"], "pattern")
    if negated:
        return [only("string", strings=Strings(unwanted=(found,)))]
    return [Shape(strings=Strings(wanted=(found,)), hints=frozenset(["string"]))]


def format_keyword(doc: Document, at: Located, negated: bool) -> list[Shape]:
    name = doc.value(at, "format", str)
    if name in _WHOLE_RANGES and not negated:
        low, high = _WHOLE_RANGES[name]
        return [Shape(numbers=Numbers(low=Decimal(low), high=Decimal(high)))]
    if name not in FORMATS:  # no format of the standard: it limits nothing
        return [] if negated else [Shape()]
    if negated:
        doc.left_out.append(f"{at.path}/format")  # our patterns are parts of a format; what lies outside may be in it
        return []
    found = format_tree(name, doc.style.quoted)
    assert found is not None
    return [Shape(strings=Strings(wanted=(found,)), hints=frozenset(["string"]))]

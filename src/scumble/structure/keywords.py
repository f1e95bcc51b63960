"""JSON Schema, drafts 4 to 2020-12, to shapes: keyword by keyword, each with its negation where that can be said.

Nothing is ignored silently. A keyword that limits values and is not supported is refused with its name and place;
keywords that limit nothing (titles, descriptions, unknown extensions) are let pass, as the standard asks.
Where only some of several alternatives can be expressed exactly, the others are left out: the language becomes smaller,
never wrong.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from scumble.errors import shown
from scumble.structure.document import Document, Reader
from scumble.structure.formats import NAMES as FORMATS
from scumble.structure.formats import format_tree
from scumble.structure.judge import judge
from scumble.structure.numbers import Numbers
from scumble.structure.shapes import (
    KINDS,
    ArrayLayer,
    Located,
    ObjectLayer,
    Shape,
    Strings,
    decimal,
    joined,
    only,
    silent,
)

_WHOLE_RANGES = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1), "uint32": (0, 2**32 - 1)}


def _type(doc: Document, at: Located, negated: bool) -> list[Shape]:
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


def _enum(doc: Document, at: Located, negated: bool) -> list[Shape]:
    values = tuple(doc.value(at, "enum", list))
    return [Shape(banned=values)] if negated else [Shape(values=values)] if values else []


def _const(doc: Document, at: Located, negated: bool) -> list[Shape]:
    value = (at.schema["const"],)
    return [Shape(banned=value)] if negated else [Shape(values=value)]


def _bound(keyword: str) -> Reader:
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


def _multiple_of(doc: Document, at: Located, negated: bool) -> list[Shape]:
    multiple = decimal(doc.value(at, "multipleOf", int, float))
    if multiple <= 0:
        doc.fail(f"{at.path}/multipleOf", f"multipleOf must be above 0, found {multiple}")
    if negated:
        doc.left_out.append(f"{at.path}/multipleOf")
        return []
    return [Shape(numbers=Numbers(multiples=(multiple,)), hints=frozenset(["number"]))]


def _size(keyword: str, kind: str, field: str) -> Reader:
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


def _pattern(doc: Document, at: Located, negated: bool) -> list[Shape]:
    found = doc.parsed(at, at.schema["pattern"], "pattern")
    if negated:
        return [only("string", strings=Strings(unwanted=(found,)))]
    return [Shape(strings=Strings(wanted=(found,)), hints=frozenset(["string"]))]


def _format(doc: Document, at: Located, negated: bool) -> list[Shape]:
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


def _properties(doc: Document, at: Located, negated: bool) -> list[Shape]:
    if negated:
        return [
            only("object", required=(name,), objects=(ObjectLayer({name: schema}),))
            for name, schema in doc.named(at, "properties", negated=True).items()
        ]
    return [_object_layer(doc, at)]


def _object_layer(doc: Document, at: Located) -> Shape:
    """properties, patternProperties and additionalProperties of one schema belong together."""
    properties = doc.named(at, "properties") if "properties" in at.schema else {}
    patterns = doc.named(at, "patternProperties") if "patternProperties" in at.schema else {}
    for pattern in patterns:
        doc.parsed(at, pattern, "patternProperties")
    others = doc.sub(at, "additionalProperties") if "additionalProperties" in at.schema else None
    return Shape(objects=(ObjectLayer(properties, tuple(patterns.items()), others),), hints=frozenset(["object"]))


def _other_members(keyword: str) -> Reader:
    """patternProperties, additionalProperties: read with the first keyword of the layer that is there."""

    def read(doc: Document, at: Located, negated: bool) -> list[Shape]:
        if negated:
            doc.left_out.append(f"{at.path}/{keyword}")
            return []
        first = next(name for name in at.schema if name in _LAYER)
        return [_object_layer(doc, at)] if first == keyword else [Shape()]

    return read


def _properties_once(doc: Document, at: Located, negated: bool) -> list[Shape]:
    first = next(name for name in at.schema if name in _LAYER)
    return _properties(doc, at, negated) if negated or first == "properties" else [Shape()]


_LAYER = ("properties", "patternProperties", "additionalProperties")


def _property_names(doc: Document, at: Located, negated: bool) -> list[Shape]:
    if negated:
        doc.left_out.append(f"{at.path}/propertyNames")
        return []
    return [Shape(objects=(ObjectLayer(names=doc.sub(at, "propertyNames")),), hints=frozenset(["object"]))]


def _required(doc: Document, at: Located, negated: bool) -> list[Shape]:
    if isinstance(at.schema["required"], bool):  # draft 3, on a property; validators of later drafts refuse it
        doc.fail(f"{at.path}/required", "required must be a list of names")
    names = doc.value(at, "required", list)
    if not all(isinstance(name, str) for name in names):
        doc.fail(f"{at.path}/required", "required must be a list of names")
    if negated:
        absent = [ObjectLayer({name: Located(False, f"{at.path}/required")}) for name in names]
        return [only("object", objects=(layer,)) for layer in absent]
    return [Shape(required=tuple(dict.fromkeys(names)), hints=frozenset(["object"]))]


def _dependencies(keyword: str) -> Reader:
    """A member that asks for others, or for a schema: it is absent, or what it asks for holds."""

    def read(doc: Document, at: Located, negated: bool) -> list[Shape]:
        if negated:
            doc.left_out.append(f"{at.path}/{keyword}")
            return []
        shapes = [Shape()]
        for name, asked in doc.value(at, keyword, dict).items():
            place = f"{at.path}/{keyword}/{name}"
            asked = {"required": asked} if isinstance(asked, list) else asked
            absent = doc.made({"properties": {name: False}}, place)
            present = [doc.made({"required": [name]}, place), doc.made(asked, place)]
            both_ways = [*doc.shapes(absent), *doc.all_of(tuple(present))]
            shapes = joined(shapes, both_ways)
        return shapes

    return read


def _items(doc: Document, at: Located, negated: bool) -> list[Shape]:
    if negated:
        doc.left_out.append(f"{at.path}/items")
        return []
    if "items" not in at.schema:  # additionalItems alone limits nothing
        return [Shape(arrays=(ArrayLayer(_prefix(doc, at)),), hints=frozenset(["array"]))]
    if isinstance(at.schema["items"], list):
        prefix = tuple(doc.sub(at, "items", index) for index in range(len(at.schema["items"])))
        items = doc.sub(at, "additionalItems") if "additionalItems" in at.schema else None
        return [Shape(arrays=(ArrayLayer(prefix, items),), hints=frozenset(["array"]))]
    return [Shape(arrays=(ArrayLayer(_prefix(doc, at), doc.sub(at, "items")),), hints=frozenset(["array"]))]


def _prefix(doc: Document, at: Located) -> tuple[Located, ...]:
    return tuple(doc.schemas(at, "prefixItems")) if "prefixItems" in at.schema else ()


def _prefix_items(doc: Document, at: Located, negated: bool) -> list[Shape]:
    """Read together with items, if that is there."""
    return [Shape()] if "items" in at.schema and not negated else _items(doc, at, negated)


def _additional_items(doc: Document, at: Located, negated: bool) -> list[Shape]:
    return [] if negated else [Shape()]  # read with items


def _unique_items(doc: Document, at: Located, negated: bool) -> list[Shape]:
    wanted = doc.value(at, "uniqueItems", bool)
    if not wanted:
        return [] if negated else [Shape()]
    if negated:
        doc.left_out.append(f"{at.path}/uniqueItems")
        return []
    return [Shape(unique=True, hints=frozenset(["array"]))]


def _contains(doc: Document, at: Located, negated: bool) -> list[Shape]:
    if negated:
        doc.left_out.append(f"{at.path}/contains")
        return []
    return [Shape(contains=(doc.sub(at, "contains"),), hints=frozenset(["array"]))]


def _ref(doc: Document, at: Located, negated: bool) -> list[Shape]:
    return doc.shapes(doc.resolve(at, doc.value(at, "$ref", str)))


def _all_of(doc: Document, at: Located, negated: bool) -> list[Shape]:
    parts = doc.schemas(at, "allOf", negated)
    return [shape for part in parts for shape in doc.shapes(part)] if negated else doc.all_of(tuple(parts))


def _any_of(doc: Document, at: Located, negated: bool) -> list[Shape]:
    parts = doc.schemas(at, "anyOf", negated)
    return doc.all_of(tuple(parts)) if negated else [shape for part in parts for shape in doc.shapes(part)]


def _one_of(doc: Document, at: Located, negated: bool) -> list[Shape]:
    """Exactly one: each part with the negation of those that it may overlap with."""
    parts = doc.schemas(at, "oneOf", negated)
    if negated:  # none at all; what satisfies two is left out
        return doc.all_of(tuple(parts))
    shapes, lost = [], []
    for index, part in enumerate(parts):
        others = [
            Located(other.schema, other.path, negated=True)
            for number, other in enumerate(parts)
            if number != index and _may_overlap(doc, part, other)
        ]
        found = doc.all_of((part, *others))
        shapes += found
        if not found and doc.shapes(part):
            lost.append(part.path)
    if not shapes and lost:
        doc.fail(f"{at.path}/oneOf", "oneOf whose parts cannot be told apart; anyOf may be meant")
    return shapes


def _may_overlap(doc: Document, one: Located, two: Located, depth: int = 4) -> bool:
    return any(_is_possible(doc, shape, depth) for shape in doc.all_of((one, two)))


def _is_possible(doc: Document, shape: Shape, depth: int) -> bool:
    """False only where a shape certainly has no value: a required member that has none."""
    if depth == 0 or shape.kinds != {"object"}:
        return True
    if shape.values is not None:
        return any(judge(doc, value, shape) for value in shape.values)
    for name in shape.required:
        conjunction = shape.member(name, doc.matches)
        if any(doc.is_open(located) for located in conjunction):
            continue
        if not any(_is_possible(doc, inner, depth - 1) for inner in doc.all_of(conjunction)):
            return False
    return True


def _not(doc: Document, at: Located, negated: bool) -> list[Shape]:
    return silent(doc.shapes(doc.sub(at, "not", negated=not negated)))


def _if(doc: Document, at: Located, negated: bool) -> list[Shape]:
    if negated:
        doc.left_out.append(f"{at.path}/if")
        return []
    then = (doc.sub(at, "then"),) if "then" in at.schema else ()
    other = (doc.sub(at, "else"),) if "else" in at.schema else ()
    if not then and not other:
        return [Shape()]
    return [*doc.all_of((doc.sub(at, "if"), *then)), *doc.all_of((doc.sub(at, "if", negated=True), *other))]


def _unevaluated(doc: Document, at: Located, negated: bool) -> list[Shape]:
    return [] if negated else [Shape()]  # applied when all other keywords are read


KEYWORDS: dict[str, Reader] = {
    "type": _type,
    "enum": _enum,
    "const": _const,
    **{name: _bound(name) for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")},
    "multipleOf": _multiple_of,
    "minLength": _size("minLength", "string", "strings"),
    "maxLength": _size("maxLength", "string", "strings"),
    "pattern": _pattern,
    "format": _format,
    "properties": _properties_once,
    "patternProperties": _other_members("patternProperties"),
    "additionalProperties": _other_members("additionalProperties"),
    "unevaluatedProperties": _unevaluated,
    "propertyNames": _property_names,
    "required": _required,
    "minProperties": _size("minProperties", "object", "members"),
    "maxProperties": _size("maxProperties", "object", "members"),
    "dependentRequired": _dependencies("dependentRequired"),
    "dependentDocument": _dependencies("dependentDocument"),
    "dependencies": _dependencies("dependencies"),
    "items": _items,
    "prefixItems": _prefix_items,
    "additionalItems": _additional_items,
    "minItems": _size("minItems", "array", "length"),
    "maxItems": _size("maxItems", "array", "length"),
    "uniqueItems": _unique_items,
    "contains": _contains,
    "$ref": _ref,
    "allOf": _all_of,
    "anyOf": _any_of,
    "oneOf": _one_of,
    "not": _not,
    "if": _if,
}

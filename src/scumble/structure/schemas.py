"""JSON Schema, drafts 4 to 2020-12, to shapes: keyword by keyword, each with its negation where that can be said.

Nothing is ignored silently. A keyword that limits values and is not supported is refused with its name and place;
keywords that limit nothing (titles, descriptions, unknown extensions) are let pass, as the standard asks.
Where only some of several alternatives can be expressed exactly, the others are left out: the language becomes smaller,
never wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from difflib import get_close_matches
from typing import Any, NoReturn
from urllib.parse import unquote

from scumble.errors import shown
from scumble.structure.automaton import Automaton, compile_tree
from scumble.structure.formats import NAMES as FORMATS
from scumble.structure.formats import format_tree
from scumble.structure.judge import judge
from scumble.structure.numbers import Numbers
from scumble.structure.pattern import parse_pattern
from scumble.structure.shapes import (
    KINDS,
    ArrayLayer,
    Conjunction,
    Located,
    ObjectLayer,
    Shape,
    Strings,
    decimal,
    joined,
    only,
    silent,
)
from scumble.structure.style import JSON, Style
from scumble.structure.tree import Node, StructureError

MOST_SHAPES = 512  # alternatives of one place of a schema, once everything is spread out
_WHOLE_RANGES = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1), "uint32": (0, 2**32 - 1)}

REFUSED = {
    "$dynamicRef": "a reference that depends on how the place was reached",
    "$recursiveRef": "a reference that depends on how the place was reached",
    "unevaluatedItems": "items that other keywords have not looked at",
    "minContains": "a count of matching items",
    "maxContains": "a count of matching items",
}
SILENT = {
    "$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary", "$comment", "$defs",
    "definitions", "title", "description", "default", "deprecated", "readOnly", "writeOnly", "examples", "example",
    "contentEncoding", "contentMediaType", "contentSchema", "then", "else", "nullable", "discriminator", "xml",
    "externalDocs",
}  # fmt: skip


class Schemas:
    """One schema document, read on demand. style: how its values are going to be written."""

    def __init__(self, root: Any, style: Style = JSON) -> None:
        self.root, self.style = root, style
        self._known: dict[Any, list[Shape]] = {}
        self._kept: list[Any] = []  # schemas made here, held so that no two share an id
        self._open: dict[Any, str] = {}  # schemas whose shapes are being worked out
        self._anchors: dict[str, tuple[Any, str]] | None = None
        self._patterns: dict[str, tuple[Node, Automaton]] = {}
        self.left_out: list[str] = []  # alternatives that could not be said, for the error if nothing remains

    # --- the normal form ----------------------------------------------------------------------------------------------

    def all_of(self, schemas: Conjunction) -> list[Shape]:
        """The shapes that satisfy every schema."""
        shapes = [Shape()]
        for located in schemas:
            shapes = joined(shapes, self.shapes(located))
            if len(shapes) > MOST_SHAPES:
                self.fail(located.path, f"more than {MOST_SHAPES} combinations of alternatives")
        return shapes

    def shapes(self, located: Located) -> list[Shape]:
        if isinstance(located.schema, bool):
            return [Shape()] if located.schema != located.negated else []
        if located.key not in self._known:
            if located.key in self._open:
                self.fail(located.path, "a $ref that leads back to itself without any value in between")
            if len(self._open) > 200:
                self.fail(located.path, "schemas nested more than 200 deep")
            self._open[located.key] = located.path
            try:
                self._known[located.key] = self._negation(located) if located.negated else self._assertion(located)
            finally:
                del self._open[located.key]
        return self._known[located.key]

    def _assertion(self, located: Located) -> list[Shape]:
        schema = self._checked(located)
        shapes = [Shape()]
        for keyword in schema:
            reader = _KEYWORDS.get(keyword)
            if reader is not None:
                shapes = joined(shapes, reader(self, located, False))
            if len(shapes) > MOST_SHAPES:
                self.fail(f"{located.path}/{keyword}", f"more than {MOST_SHAPES} combinations of alternatives")
        if schema.get("unevaluatedProperties", True) is not True:
            shapes = [self._closed(shape, located) for shape in shapes]
        return shapes

    def _negation(self, located: Located) -> list[Shape]:
        """Values that break at least one keyword. What cannot be said is left out: fewer values, none of them wrong."""
        schema, shapes = self._checked(located), []
        if schema.get("unevaluatedProperties", True) is not True:
            self.left_out.append(f"{located.path}/unevaluatedProperties")
        for keyword in schema:
            reader = _KEYWORDS.get(keyword)
            if reader is not None:
                shapes += reader(self, located, True)
        return silent(shapes)

    def _checked(self, located: Located) -> dict[str, Any]:
        schema = located.schema
        if not isinstance(schema, dict):
            self.fail(located.path, f"a schema must be an object or a boolean, found {shown(schema)}")
        for keyword, value in schema.items():
            if not isinstance(keyword, str):
                self.fail(located.path, f"a keyword must be a string, found {shown(keyword)}")
            if keyword in REFUSED and not (keyword == "unevaluatedItems" and value is True):
                self.fail(f"{located.path}/{keyword}", f"{keyword} ({REFUSED[keyword]}) is not supported")
            if keyword not in _KEYWORDS and keyword not in SILENT and keyword not in REFUSED:
                if keyword.startswith("$"):
                    self.fail(f"{located.path}/{keyword}", f"the keyword {keyword} is not known")
                near = get_close_matches(keyword, _KEYWORDS, 1, 0.85)
                if near and not keyword.startswith("x-"):
                    self.fail(f"{located.path}/{keyword}", f"the keyword {keyword} is not known; is {near[0]} meant?")
        return schema

    def _closed(self, shape: Shape, located: Located) -> Shape:
        """unevaluatedProperties: members that no layer names are held to its schema."""
        layers = [layer for layer in shape.objects if layer.evaluates]
        if any(layer.others is not None for layer in layers):
            return shape  # additionalProperties has looked at every member
        names = {name: Located(True, located.path) for layer in layers for name in layer.properties}
        patterns = tuple((pattern, Located(True, located.path)) for layer in layers for pattern, _ in layer.patterns)
        others = self.sub(located, "unevaluatedProperties")
        closed = shape & Shape(objects=(ObjectLayer(names, patterns, others),))
        return closed or shape

    # --- places -------------------------------------------------------------------------------------------------------

    def fail(self, path: str, why: str) -> NoReturn:
        raise StructureError(f"the schema cannot be guaranteed: {why}, at {path[:200]}")

    def sub(self, located: Located, *names: str | int, negated: bool = False) -> Located:
        """A schema inside another one."""
        schema, path = located.schema, located.path
        for name in names:
            schema = schema[name]
            path += "/" + str(name).replace("~", "~0").replace("/", "~1")
        return Located(schema, path, negated)

    def made(self, schema: Any, path: str, negated: bool = False) -> Located:
        """A schema that another keyword amounts to."""
        self._kept.append(schema)
        return Located(schema, path, negated)

    def pattern(self, pattern: str) -> Node:
        """The names that hold a pattern of patternProperties, as spelled inside quotes."""
        if pattern not in self._patterns:
            what = "a pattern of patternProperties:"
            language = parse_pattern(pattern, quoted=self.style.quoted, anchored=False, what=what)
            self._patterns[pattern] = language, compile_tree(language)
        return self._patterns[pattern][0]

    def matches(self, pattern: str, name: str) -> bool:
        self.pattern(pattern)
        return self._patterns[pattern][1].accepts(self.style.inside(name).data)

    def resolve(self, located: Located, ref: str) -> Located:
        """A local $ref: #, #/pointer, #anchor, with or without the document's own address in front."""
        own = self.root.get("$id", self.root.get("id", "")) if isinstance(self.root, dict) else ""
        address, _, fragment = ref.partition("#")
        place = f"{located.path}/$ref"
        if address and address.rstrip("/") != str(own).partition("#")[0].rstrip("/"):
            self.fail(place, f"$ref {shown(ref)} leads outside the schema; only references inside it are followed")
        fragment = unquote(fragment)
        if fragment == "":
            return Located(self.root, "#", located.negated)
        if not fragment.startswith("/"):
            return self._anchor(fragment, located, place)
        at: Any = self.root
        for part in fragment[1:].split("/"):
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(at, dict) and part in at:
                at = at[part]
            elif isinstance(at, list) and part.isdecimal() and int(part) < len(at):
                at = at[int(part)]
            else:
                self.fail(place, f"$ref {shown(ref)} leads nowhere")
        return Located(at, "#" + fragment, located.negated)

    def _anchor(self, name: str, located: Located, place: str) -> Located:
        if self._anchors is None:
            self._anchors = {}
            todo: list[tuple[Any, str]] = [(self.root, "#")]
            while todo:
                at, path = todo.pop()
                inside = at.items() if isinstance(at, dict) else enumerate(at) if isinstance(at, list) else ()
                todo += [(value, f"{path}/{key}") for key, value in inside]
                if isinstance(at, dict):
                    for key in ("$anchor", "$id", "id"):
                        anchor = at.get(key)
                        if isinstance(anchor, str):
                            self._anchors.setdefault(anchor.removeprefix("#"), (at, path))
        if name not in self._anchors:
            self.fail(place, f"$ref #{name} leads nowhere")
        return Located(*self._anchors[name], located.negated)

    # --- values of keywords -------------------------------------------------------------------------------------------

    def value(self, located: Located, keyword: str, *kinds: type) -> Any:
        found = located.schema[keyword]
        if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
            wanted = " or ".join(_KIND_NAMES[kind] for kind in kinds if kind in _KIND_NAMES)
            self.fail(f"{located.path}/{keyword}", f"{keyword} must be {wanted}, found {shown(found)}")
        return found

    def count(self, located: Located, keyword: str) -> int:
        found = self.value(located, keyword, int, float)
        if found != int(found) or found < 0:
            self.fail(f"{located.path}/{keyword}", f"{keyword} must be a whole number from 0 up, found {shown(found)}")
        return int(found)

    def schemas(self, located: Located, keyword: str, negated: bool = False) -> list[Located]:
        found = self.value(located, keyword, list)
        if not found:
            self.fail(f"{located.path}/{keyword}", f"{keyword} must hold at least one schema")
        return [self.sub(located, keyword, index, negated=negated) for index in range(len(found))]

    def named(self, located: Located, keyword: str, negated: bool = False) -> dict[str, Located]:
        found = self.value(located, keyword, dict)
        return {name: self.sub(located, keyword, name, negated=negated) for name in found}

    def parsed(self, located: Located, pattern: Any, keyword: str) -> Any:
        if not isinstance(pattern, str):
            self.fail(f"{located.path}/{keyword}", f"a pattern must be a string, found {shown(pattern)}")
        what = f"the pattern at {located.path[:200]}/{keyword}:"
        return parse_pattern(pattern, quoted=self.style.quoted, anchored=False, what=what)


_KIND_NAMES = {dict: "an object", list: "a list", str: "a string", int: "a number", bool: "true or false"}
Reader = Callable[[Schemas, Located, bool], list[Shape]]  # (document, schema, negated) -> alternatives


def _type(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
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


def _enum(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
    values = tuple(doc.value(at, "enum", list))
    return [Shape(banned=values)] if negated else [Shape(values=values)] if values else []


def _const(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
    value = (at.schema["const"],)
    return [Shape(banned=value)] if negated else [Shape(values=value)]


def _bound(keyword: str) -> Reader:
    lower = keyword.endswith("inimum")

    def read(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
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


def _multiple_of(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
    multiple = decimal(doc.value(at, "multipleOf", int, float))
    if multiple <= 0:
        doc.fail(f"{at.path}/multipleOf", f"multipleOf must be above 0, found {multiple}")
    if negated:
        doc.left_out.append(f"{at.path}/multipleOf")
        return []
    return [Shape(numbers=Numbers(multiples=(multiple,)), hints=frozenset(["number"]))]


def _size(keyword: str, kind: str, field: str) -> Reader:
    """minLength, maxItems …: a bound on a count; its negation is the bound on the other side."""

    def read(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
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


def _pattern(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
    found = doc.parsed(at, at.schema["pattern"], "pattern")
    if negated:
        return [only("string", strings=Strings(unwanted=(found,)))]
    return [Shape(strings=Strings(wanted=(found,)), hints=frozenset(["string"]))]


def _format(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
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


def _properties(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
    if negated:
        return [
            only("object", required=(name,), objects=(ObjectLayer({name: schema}),))
            for name, schema in doc.named(at, "properties", negated=True).items()
        ]
    return [_object_layer(doc, at)]


def _object_layer(doc: Schemas, at: Located) -> Shape:
    """properties, patternProperties and additionalProperties of one schema belong together."""
    properties = doc.named(at, "properties") if "properties" in at.schema else {}
    patterns = doc.named(at, "patternProperties") if "patternProperties" in at.schema else {}
    for pattern in patterns:
        doc.parsed(at, pattern, "patternProperties")
    others = doc.sub(at, "additionalProperties") if "additionalProperties" in at.schema else None
    return Shape(objects=(ObjectLayer(properties, tuple(patterns.items()), others),), hints=frozenset(["object"]))


def _other_members(keyword: str) -> Reader:
    """patternProperties, additionalProperties: read with the first keyword of the layer that is there."""

    def read(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
        if negated:
            doc.left_out.append(f"{at.path}/{keyword}")
            return []
        first = next(name for name in at.schema if name in _LAYER)
        return [_object_layer(doc, at)] if first == keyword else [Shape()]

    return read


def _properties_once(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
    first = next(name for name in at.schema if name in _LAYER)
    return _properties(doc, at, negated) if negated or first == "properties" else [Shape()]


_LAYER = ("properties", "patternProperties", "additionalProperties")


def _property_names(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
    if negated:
        doc.left_out.append(f"{at.path}/propertyNames")
        return []
    return [Shape(objects=(ObjectLayer(names=doc.sub(at, "propertyNames")),), hints=frozenset(["object"]))]


def _required(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
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

    def read(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
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


def _items(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
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


def _prefix(doc: Schemas, at: Located) -> tuple[Located, ...]:
    return tuple(doc.schemas(at, "prefixItems")) if "prefixItems" in at.schema else ()


def _prefix_items(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
    """Read together with items, if that is there."""
    return [Shape()] if "items" in at.schema and not negated else _items(doc, at, negated)


def _additional_items(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
    return [] if negated else [Shape()]  # read with items


def _unique_items(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
    wanted = doc.value(at, "uniqueItems", bool)
    if not wanted:
        return [] if negated else [Shape()]
    if negated:
        doc.left_out.append(f"{at.path}/uniqueItems")
        return []
    return [Shape(unique=True, hints=frozenset(["array"]))]


def _contains(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
    if negated:
        doc.left_out.append(f"{at.path}/contains")
        return []
    return [Shape(contains=(doc.sub(at, "contains"),), hints=frozenset(["array"]))]


def _ref(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
    return doc.shapes(doc.resolve(at, doc.value(at, "$ref", str)))


def _all_of(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
    parts = doc.schemas(at, "allOf", negated)
    return [shape for part in parts for shape in doc.shapes(part)] if negated else doc.all_of(tuple(parts))


def _any_of(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
    parts = doc.schemas(at, "anyOf", negated)
    return doc.all_of(tuple(parts)) if negated else [shape for part in parts for shape in doc.shapes(part)]


def _one_of(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
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


def _may_overlap(doc: Schemas, one: Located, two: Located, depth: int = 4) -> bool:
    return any(_is_possible(doc, shape, depth) for shape in doc.all_of((one, two)))


def _is_possible(doc: Schemas, shape: Shape, depth: int) -> bool:
    """False only where a shape certainly has no value: a required member that has none."""
    if depth == 0 or shape.kinds != {"object"}:
        return True
    if shape.values is not None:
        return any(judge(doc, value, shape) for value in shape.values)
    for name in shape.required:
        conjunction = shape.member(name, doc.matches)
        if any(located.key in doc._open for located in conjunction):
            continue
        if not any(_is_possible(doc, inner, depth - 1) for inner in doc.all_of(conjunction)):
            return False
    return True


def _not(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
    return silent(doc.shapes(doc.sub(at, "not", negated=not negated)))


def _if(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
    if negated:
        doc.left_out.append(f"{at.path}/if")
        return []
    then = (doc.sub(at, "then"),) if "then" in at.schema else ()
    other = (doc.sub(at, "else"),) if "else" in at.schema else ()
    if not then and not other:
        return [Shape()]
    return [*doc.all_of((doc.sub(at, "if"), *then)), *doc.all_of((doc.sub(at, "if", negated=True), *other))]


def _unevaluated(doc: Schemas, at: Located, negated: bool) -> list[Shape]:
    return [] if negated else [Shape()]  # applied when all other keywords are read


_KEYWORDS: dict[str, Reader] = {
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
    "dependentSchemas": _dependencies("dependentSchemas"),
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
SUPPORTED = tuple(_KEYWORDS)

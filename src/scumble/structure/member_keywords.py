"""JSON Schema keywords of an object's members and an array's items."""

from __future__ import annotations

from scumble.structure.document import Document, Reader
from scumble.structure.shapes import ArrayLayer, Located, ObjectLayer, Shape, joined, only


def properties(doc: Document, at: Located, negated: bool) -> list[Shape]:
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


def other_members(keyword: str) -> Reader:
    """patternProperties, additionalProperties: read with the first keyword of the layer that is there."""

    def read(doc: Document, at: Located, negated: bool) -> list[Shape]:
        if negated:
            doc.left_out.append(f"{at.path}/{keyword}")
            return []
        first = next(name for name in at.schema if name in _LAYER)
        return [_object_layer(doc, at)] if first == keyword else [Shape()]

    return read


def properties_once(doc: Document, at: Located, negated: bool) -> list[Shape]:
    first = next(name for name in at.schema if name in _LAYER)
    return properties(doc, at, negated) if negated or first == "properties" else [Shape()]


_LAYER = ("properties", "patternProperties", "additionalProperties")


def property_names(doc: Document, at: Located, negated: bool) -> list[Shape]:
    if negated:
        doc.left_out.append(f"{at.path}/propertyNames")
        return []
    return [Shape(objects=(ObjectLayer(names=doc.sub(at, "propertyNames")),), hints=frozenset(["object"]))]


def required(doc: Document, at: Located, negated: bool) -> list[Shape]:
    if isinstance(at.schema["required"], bool):  # draft 3, on a property; validators of later drafts refuse it
        doc.fail(f"{at.path}/required", "required must be a list of names")
    names = doc.value(at, "required", list)
    if not all(isinstance(name, str) for name in names):
        doc.fail(f"{at.path}/required", "required must be a list of names")
    if negated:
        absent = [ObjectLayer({name: Located(False, f"{at.path}/required")}) for name in names]
        return [only("object", objects=(layer,)) for layer in absent]
    return [Shape(required=tuple(dict.fromkeys(names)), hints=frozenset(["object"]))]


def dependencies(keyword: str) -> Reader:
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


def items(doc: Document, at: Located, negated: bool) -> list[Shape]:
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


def prefix_items(doc: Document, at: Located, negated: bool) -> list[Shape]:
    """Read together with items, if that is there."""
    return [Shape()] if "items" in at.schema and not negated else items(doc, at, negated)


def additional_items(doc: Document, at: Located, negated: bool) -> list[Shape]:
    return [] if negated else [Shape()]  # read with items


def unique_items(doc: Document, at: Located, negated: bool) -> list[Shape]:
    wanted = doc.value(at, "uniqueItems", bool)
    if not wanted:
        return [] if negated else [Shape()]
    if negated:
        doc.left_out.append(f"{at.path}/uniqueItems")
        return []
    return [Shape(unique=True, hints=frozenset(["array"]))]


def contains(doc: Document, at: Located, negated: bool) -> list[Shape]:
    if negated:
        doc.left_out.append(f"{at.path}/contains")
        return []
    return [Shape(contains=(doc.sub(at, "contains"),), hints=frozenset(["array"]))]

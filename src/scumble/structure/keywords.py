"""JSON Schema, drafts 4 to 2020-12, to shapes: keyword by keyword, each with its negation where that can be said.

Nothing is ignored silently. A keyword that limits values and is not supported is refused with its name and place;
keywords that limit nothing (titles, descriptions, unknown extensions) are let pass, as the standard asks.
Where only some of several alternatives can be expressed exactly, the others are left out: the language becomes smaller,
never wrong.
"""

from __future__ import annotations

from scumble.structure import logic_keywords as logic
from scumble.structure import member_keywords as member
from scumble.structure import scalar_keywords as scalar
from scumble.structure.document import Document, Reader
from scumble.structure.shapes import Located, Shape


def unevaluated(doc: Document, at: Located, negated: bool) -> list[Shape]:
    return [] if negated else [Shape()]  # applied when all other keywords are read


KEYWORDS: dict[str, Reader] = {
    "type": scalar.type_keyword,
    "enum": scalar.enum,
    "const": scalar.const,
    **{name: scalar.bound(name) for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")},
    "multipleOf": scalar.multiple_of,
    "minLength": scalar.size("minLength", "string", "strings"),
    "maxLength": scalar.size("maxLength", "string", "strings"),
    "pattern": scalar.pattern,
    "format": scalar.format_keyword,
    "properties": member.properties_once,
    "patternProperties": member.other_members("patternProperties"),
    "additionalProperties": member.other_members("additionalProperties"),
    "unevaluatedProperties": unevaluated,
    "propertyNames": member.property_names,
    "required": member.required,
    "minProperties": scalar.size("minProperties", "object", "members"),
    "maxProperties": scalar.size("maxProperties", "object", "members"),
    "dependentRequired": member.dependencies("dependentRequired"),
    "dependentSchemas": member.dependencies("dependentSchemas"),
    "dependencies": member.dependencies("dependencies"),
    "items": member.items,
    "prefixItems": member.prefix_items,
    "additionalItems": member.additional_items,
    "minItems": scalar.size("minItems", "array", "length"),
    "maxItems": scalar.size("maxItems", "array", "length"),
    "uniqueItems": member.unique_items,
    "contains": member.contains,
    "$ref": logic.ref,
    "allOf": logic.all_of,
    "anyOf": logic.any_of,
    "oneOf": logic.one_of,
    "not": logic.not_keyword,
    "if": logic.if_keyword,
}

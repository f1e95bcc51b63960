"""JSON Schema: what is written satisfies the schema by an independent validator, and what is unsupported is refused."""

import json
import random

import jsonschema_rs
import pytest

from scumble.structure import JsonSchema, Limits, StructureError
from scumble.structure.automaton import Automaton, Budget
from scumble.structure.document import REFUSED, SILENT
from scumble.structure.keywords import KEYWORDS
from structure.walks import random_schema, walk


def compile_(schema: object) -> Automaton:
    return JsonSchema.of(schema).automaton(Budget(Limits(seconds=60)))


def accepts(schema: object, text: str) -> bool:
    return compile_(schema).accepts(text.encode())


@pytest.mark.parametrize("seed", range(60))
def test_every_text_of_a_random_schema_is_valid(seed: int) -> None:
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("hundred", range(1, 20))
def test_every_text_of_many_random_schemas_is_valid(hundred: int) -> None:
    for seed in range(100 * hundred, 100 * hundred + 100):
        check(seed)


def check(seed: int) -> None:
    rng = random.Random(seed)
    schema = random_schema(rng)
    try:
        machine = compile_(schema)
    except StructureError as error:
        if "contradicts itself" not in str(error):  # the only reason that the generator can give
            raise
        return
    validator = jsonschema_rs.validator_for(schema, validate_formats=True)
    for _ in range(8):
        text = walk(machine, rng)
        assert validator.is_valid(json.loads(text)), (schema, text)


@pytest.mark.parametrize(
    ("schema", "texts"),
    [
        ({"type": "integer", "minimum": 13, "maximum": 1024}, ["13", "99", "1024"]),
        ({"type": "number", "exclusiveMinimum": -0.5, "maximum": 2}, ["-0.25", "0", "1.50", "2.0"]),
        ({"type": "number", "multipleOf": 0.05}, ["0", "0.05", "-1.10", "7"]),
        ({"type": "string", "minLength": 2, "maxLength": 2}, ['"ab"', '"é\\n"', '"𝄞𝄞"', '"\\"\\\\"']),
        ({"type": "string", "pattern": "b+"}, ['"b"', '"abc"']),
        ({"enum": ["a", 1, None]}, ['"a"', "1", "null"]),
        ({"type": "array", "items": {"type": "boolean"}, "maxItems": 2}, ["[]", "[true]", "[true, false]"]),
        ({"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}, "required": ["b"]},
         ['{"b": null}', '{"a": null, "b": null}']),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, ["{}", '{"x": 1, "y": 2}']),
        ({}, ["null", "[1, [], {}]", '{"a": {"b": true}}']),
    ],
)  # fmt: skip
def test_expected_texts_are_in_the_language(schema: dict, texts: list[str]) -> None:
    for text in texts:
        assert accepts(schema, text), text


@pytest.mark.parametrize(
    ("schema", "texts"),
    [
        ({"type": "integer", "minimum": 13, "maximum": 1024}, ["12", "1025", "013", "-13", "13.0", "1e2", ""]),
        ({"type": "number", "exclusiveMinimum": -0.5, "maximum": 2}, ["-0.5", "-0.50", "2.01", "-0", "-0.0", "+1"]),
        ({"type": "string", "maxLength": 2}, ['"abc"', '"a', "a", '"\\ud800"']),
        ({"type": "string", "not": {"enum": ["a"]}}, ['"a"', '"\\u0061"']),
        ({"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "integer"}},
         ['{"a": 1}', '{"\\u0061": 1}']),
    ],
)  # fmt: skip
def test_other_texts_are_not_in_the_language(schema: dict, texts: list[str]) -> None:
    for text in texts:
        assert not accepts(schema, text), text


STANDARD = """
    $schema $id id $ref $anchor $dynamicRef $dynamicAnchor $recursiveRef $recursiveAnchor $vocabulary $comment $defs
    definitions type enum const multipleOf maximum exclusiveMaximum minimum exclusiveMinimum maxLength minLength pattern
    items prefixItems additionalItems unevaluatedItems maxItems minItems uniqueItems contains maxContains minContains
    properties patternProperties additionalProperties unevaluatedProperties propertyNames maxProperties minProperties
    required dependentRequired dependentSchemas dependencies allOf anyOf oneOf not if then else format
    contentEncoding contentMediaType contentSchema title description default deprecated readOnly writeOnly examples
"""


def test_every_keyword_of_the_standard_is_read_or_refused_or_limits_nothing() -> None:
    """Drafts 4 to 2020-12. One that none of the tables knows would be ignored."""
    assert set(STANDARD.split()) <= {*KEYWORDS, *REFUSED, *SILENT}
    assert set(KEYWORDS) <= set(STANDARD.split())


def test_recursion_is_bounded() -> None:
    node = {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["next"],
    }
    assert accepts(node, '{"next": {"next": null}}')
    assert not accepts(node, '{"next": ' * 9 + "null" + "}" * 9)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 5, "maximum": 4}, "contradicts itself"),
        ({"allOf": [{"const": 1}, {"const": 2}]}, "contradicts itself"),
        ({"type": "string", "pattern": "^a$", "minLength": 2}, "contradicts itself"),
        ({"type": "object", "required": ["a"], "properties": {"a": False}}, "contradicts itself"),
        (False, "contradicts itself"),
        ({"$ref": "https://example.com/x.json"}, "leads outside the schema, only|#/\\$ref"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "leads back to itself"),
        ({"$ref": "#/nowhere"}, "leads nowhere"),
        ({"properties": {"a": {"$dynamicRef": "#b"}}}, "#/properties/a/\\$dynamicRef"),
        ({"type": "array", "unevaluatedItems": False}, "unevaluatedItems"),
        ({"type": "array", "uniqueItems": True, "items": {"type": "object"}}, "uniqueItems"),
        ({"minlength": 3}, "minLength meant"),
        ({"type": "integer", "maximum": 3, "$data": "1/a"}, "#/\\$data"),
        ({"type": "strnig"}, "not known"),
        ({"minLength": -1}, "#/minLength"),
        ({"minLength": 1.5}, "#/minLength"),
        ({"multipleOf": 0}, "above 0"),
        ({"pattern": "(?=a)"}, "lookaround"),
        ({"pattern": "(a)\\1"}, "backreferences"),
        ({"properties": {"\ud800": {}}, "type": "object", "required": ["\ud800"]}, "surrogate"),
        ({"enum": ["\udc00"]}, "surrogate|written"),
        ({"type": "array", "minItems": 100000}, "minItems"),
        ({"type": "string", "minLength": 9000}, "states|seconds|took"),
        ({"anyOf": []}, "at least one"),
        ({"properties": []}, "an object"),
        ({"oneOf": [{"type": "object"}, {"type": "object"}]}, "told apart|contradicts"),
        ([], "object or a boolean"),
        ("{", "not JSON"),
        ('{"a": ' * 100_000, "not JSON"),
        ({"description": "x" * 5_000_000}, "limit"),
    ],
)  # fmt: skip
def test_refusals_name_the_keyword_and_the_place(schema: object, words: str) -> None:
    with pytest.raises(StructureError, match=words):
        compile_(schema)


def test_nested_too_deeply_is_refused() -> None:
    schema: dict = {"type": "null"}
    for _ in range(5000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(StructureError):
        compile_(schema)


def test_annotations_and_extensions_are_let_pass() -> None:
    assert accepts(
        {
            "type": "null",
            "title": "t",
            "x-tension": 1,
            "tsType": "null",
            "$comment": "c",
            "_format": "date",
            "$license": "x",
        },
        "null",
    )

"""Every limit of JSON Schema at its border: the last value inside is in the language, the first one outside is not.

Then every number in random schemas is moved by one: what an independent validator now refuses, the language refuses.
"""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble.structure import StructureError
from structure.test_schema import accepts, compile_
from structure.walks import random_schema, walk

sizes = st.integers(0, 12)


def check(schema: dict[str, Any], inside: list[Any], outside: list[Any]) -> None:
    validator, machine = jsonschema_rs.validator_for(schema), compile_(schema)
    for values, expected in ((inside, True), (outside, False)):
        for value in values:
            assert validator.is_valid(value) is expected, "the test itself is wrong"
            assert machine.accepts(json.dumps(value, ensure_ascii=False).encode()) is expected, (schema, value)


@settings(max_examples=15, deadline=None)
@given(sizes, sizes, st.sampled_from(["a", "é", "𝄞", "\n", '"']))
def test_lengths_of_strings(least: int, more: int, letter: str) -> None:
    most = least + more
    check(
        {"type": "string", "minLength": least, "maxLength": most},
        [letter * least, letter * most],
        [letter * (most + 1)] + [letter * (least - 1)] * (least > 0),
    )


@settings(max_examples=15, deadline=None)
@given(sizes, sizes)
def test_lengths_of_arrays(least: int, more: int) -> None:
    most = least + more
    check(
        {"type": "array", "items": {"type": "null"}, "minItems": least, "maxItems": most},
        [[None] * least, [None] * most],
        [[None] * (most + 1)] + [[None] * (least - 1)] * (least > 0),
    )


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 5), st.integers(0, 3))
def test_numbers_of_members(least: int, more: int) -> None:
    most = min(5, least + more)
    names = "abcde"
    schema: dict[str, Any] = {"type": "object", "properties": {name: {"type": "null"} for name in names}}
    schema |= {"additionalProperties": False, "minProperties": least, "maxProperties": most}
    check(
        schema,
        [dict.fromkeys(names[:least]), dict.fromkeys(names[5 - most :])],
        [dict.fromkeys(names[: most + 1])] * (most < 5) + [dict.fromkeys(names[: least - 1])] * (least > 0),
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(-2000, 2000), st.integers(0, 300), st.booleans(), st.booleans())
def test_bounds_of_whole_numbers(low: int, more: int, low_open: bool, high_open: bool) -> None:
    high = low + more + 2
    schema = {"type": "integer", "exclusiveMinimum" if low_open else "minimum": low}
    schema["exclusiveMaximum" if high_open else "maximum"] = high
    first, last = low + low_open, high - high_open
    check(schema, [first, last], [first - 1, last + 1])


@settings(max_examples=25, deadline=None)
@given(st.integers(-9999, 9999), st.integers(1, 5000), st.booleans(), st.booleans())
def test_bounds_of_numbers(hundredths: int, more: int, low_open: bool, high_open: bool) -> None:
    low, high = hundredths / 100, (hundredths + more + 2) / 100
    schema = {"type": "number", "exclusiveMinimum" if low_open else "minimum": low}
    schema["exclusiveMaximum" if high_open else "maximum"] = high
    beside = [low + 0.001, high - 0.001]
    around = [low - 0.001, high + 0.001, low - 100, high + 100]
    on = [low] * (not low_open) + [high] * (not high_open)
    off = [low] * low_open + [high] * high_open
    check(schema, [round(value, 3) for value in beside + on], [round(value, 3) for value in around + off])


@pytest.mark.parametrize(
    ("schema", "inside", "outside"),
    [
        ({"type": "integer", "multipleOf": 7}, [0, 7, -21, 700], [1, 6, 8, -20]),
        ({"type": "number", "multipleOf": 0.05}, [0.05, 1.15, -3], [0.04, 0.051, 1.11]),
        ({"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True}, [["a", "b"], []], [["a", "a"]]),
        ({"type": "object", "additionalProperties": {"type": "null"}, "minProperties": 1}, [{"x": None}], [{}]),
        ({"type": "object", "additionalProperties": {"type": "null"}, "maxProperties": 1},
         [{}, {"x": None}], [{"x": None, "y": None}]),
        ({"type": "object", "required": ["a"], "properties": {"a": {"type": "null"}}}, [{"a": None}], [{}]),
        ({"type": "object", "properties": {"a": {}, "b": {"type": "null"}}, "additionalProperties": False,
          "dependentSchemas": {"a": {"required": ["b"], "properties": {"a": {"const": 1}}}}},
         [{}, {"b": None}, {"a": 1, "b": None}], [{"a": 1}, {"a": 2, "b": None}]),
        ({"type": "object", "propertyNames": {"maxLength": 2}, "additionalProperties": {"type": "null"}},
         [{"ab": None}], [{"abc": None}]),
        ({"type": "array", "items": {"type": "integer"}, "contains": {"const": 3}}, [[3], [1, 3, 2]], [[], [1, 2]]),
        ({"type": "array", "prefixItems": [{"const": 1}], "items": {"const": 2}}, [[], [1], [1, 2, 2]], [[2], [1, 1]]),
    ],
)  # fmt: skip
def test_other_limits(schema: dict[str, Any], inside: list[Any], outside: list[Any]) -> None:
    check(schema, inside, outside)


def mutations(schema: Any) -> Iterator[Any]:
    """The schema with one number moved by one, or one keyword left out."""
    places = [(schema, key) for key in schema] if isinstance(schema, dict) else list(_pairs(schema))
    for holder, key in places:
        value = holder[key]
        if isinstance(value, int | float) and not isinstance(value, bool) and isinstance(holder, dict):
            for moved in (value - 1, value + 1):
                holder[key] = moved
                yield schema
            holder[key] = value
        elif isinstance(value, dict | list) and key not in ("enum", "const"):
            for _ in mutations(value):
                yield schema


def _pairs(values: Any) -> Iterator[tuple[Any, int]]:
    return ((values, index) for index in range(len(values))) if isinstance(values, list) else iter(())


@pytest.mark.parametrize("seed", range(40))
def test_mutated_schemas_are_obeyed(seed: int) -> None:
    check_mutations(seed)


@pytest.mark.slow
@pytest.mark.parametrize("hundred", range(1, 6))
def test_many_mutated_schemas_are_obeyed(hundred: int) -> None:
    for seed in range(100 * hundred, 100 * hundred + 100):
        check_mutations(seed)


def check_mutations(seed: int) -> None:
    rng = random.Random(seed)
    schema = random_schema(rng, 2)
    try:
        machine = compile_(schema)
    except StructureError:
        return
    texts = [walk(machine, rng, 60) for _ in range(6)]
    for mutant in mutations(copy.deepcopy(schema)):
        try:
            validator = jsonschema_rs.validator_for(mutant, validate_formats=True)
        except ValueError:  # minLength -1
            continue
        broken = [text for text in texts if not validator.is_valid(json.loads(text))]
        if not broken:
            continue
        try:
            moved = compile_(mutant)
        except StructureError:
            continue
        for text in broken:
            assert not moved.accepts(text), (mutant, text)


def test_names_that_no_schema_spells_out_may_stand_twice() -> None:
    """An automaton cannot remember them. Whichever of the two a parser keeps, the object is valid."""
    schema = {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1}
    assert accepts(schema, '{"a": 1, "a": 2}')
    with pytest.raises(StructureError, match="minProperties"):  # so two of them cannot be promised
        compile_(schema | {"minProperties": 2})


@pytest.mark.parametrize("seed", range(40))
def test_either_of_two_equal_names_is_valid(seed: int) -> None:
    rng = random.Random(seed)
    schema = {
        "type": "object",
        "properties": {"k": {"type": "boolean"}},
        "patternProperties": {"^x": random_schema(rng, 1)},
        "additionalProperties": random_schema(rng, 1),
    }
    try:
        machine = compile_(schema)
    except StructureError:
        return
    validator = jsonschema_rs.validator_for(schema, validate_formats=True)
    text = walk(machine, rng, 80)
    member = json.loads(text)
    twice = text[:-1] + b", " + text[1:] if member else text  # every member again
    if machine.accepts(twice):
        for keep in (dict, lambda pairs: dict(reversed(pairs))):
            assert validator.is_valid(json.loads(twice, object_pairs_hook=keep)), twice

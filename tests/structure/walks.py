"""Texts of an automaton's language by random walks, and random schemas: what the tests of this folder draw from."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from scumble.structure.automaton import DEAD, START, Automaton
from scumble.structure.classes import Tokens


def distances(machine: Automaton) -> np.ndarray:
    """Fewest bytes to an accepting state [S]."""
    far = 10**9
    found = np.where(machine.ends, 0, far)
    while True:
        shorter = np.minimum(found, 1 + np.where(machine.step == DEAD, far, found[machine.step]).min(1))
        shorter[DEAD] = far
        if (shorter == found).all():
            return found
        found = shorter


def walk(machine: Automaton, rng: random.Random, length: int = 150) -> bytes:
    """A random text; after `length` bytes it takes the shortest way to an end."""
    return bytes(walk_symbols(machine, rng, length))


def walk_symbols(machine: Automaton, rng: random.Random, length: int = 150) -> list[int]:
    """The same where there may be special tokens: bytes, and 256 + k for the automaton's symbol k."""
    away, state, text = distances(machine), START, list[int]()
    while not (machine.ends[state] and (len(text) >= length or rng.random() < 0.3)):
        columns = np.flatnonzero(machine.step[state])
        if not len(columns):
            break
        column = int(rng.choice(columns.tolist()))
        if len(text) >= length:
            column = int(min(columns, key=lambda c: away[machine.step[state, c]]))
        text.append(int(rng.choice(np.flatnonzero(machine.column == column).tolist())))
        state = int(machine.step[state, column])
    return text


def walk_tokens(tokens: Tokens, rng: random.Random, length: int = 40) -> list[int]:
    """Ids of a random text, without the end id; after `length` of them it takes the shortest way to an end."""
    state, ids = START, list[int]()
    while not (tokens.ends[state] and (len(ids) >= length or rng.random() < 0.2)):
        classes = np.flatnonzero(tokens.step[state])
        if len(ids) >= length or not len(classes):
            classes = classes[tokens.distance[tokens.step[state, classes]] < tokens.distance[state]]
        if not len(classes):
            break
        chosen = int(rng.choice(classes.tolist()))
        ids.append(int(rng.choice(np.flatnonzero(tokens.of_token == chosen).tolist())))
        state = int(tokens.step[state, chosen])
    return ids


def random_schema(rng: random.Random, depth: int = 3) -> dict[str, Any]:
    """A schema out of all that is supported; contradictory ones are rare but do occur."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "pattern", "format", "any_of"]
    if depth:
        kinds += (
            ["object"] * 5 + ["array"] * 3 + ["map", "all_of", "one_of", "not", "if", "tuple", "unique", "contains"]
        )
    schema = globals()[f"_{rng.choice(kinds)}"](rng, depth - 1)
    if rng.random() < 0.2:
        schema["description"] = "anything"
    return schema


def _string(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if rng.random() < 0.5:
        schema["minLength"] = rng.randint(0, 4)
    if rng.random() < 0.5:
        schema["maxLength"] = rng.randint(4, 30)
    return schema


def _integer(rng: random.Random, depth: int) -> dict[str, Any]:
    return _bounded(rng, {"type": "integer"}, lambda: rng.randint(-200, 200), [2, 3, 5, 10])


def _number(rng: random.Random, depth: int) -> dict[str, Any]:
    return _bounded(
        rng, {"type": "number"}, lambda: round(rng.uniform(-50, 50), rng.randint(0, 3)), [0.5, 0.25, 2, 1.5]
    )


def _bounded(rng: random.Random, schema: dict[str, Any], draw: Any, multiples: list[float]) -> dict[str, Any]:
    low, high = sorted((draw(), draw()))
    if rng.random() < 0.5:
        schema[rng.choice(["minimum", "exclusiveMinimum"])] = low
    if rng.random() < 0.5:
        schema[rng.choice(["maximum", "exclusiveMaximum"])] = high + 40
    if rng.random() < 0.2:
        schema["multipleOf"] = rng.choice(multiples)
    return schema


def _boolean(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "boolean"}


def _null(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": ["null", rng.choice(["integer", "string"])]}


def _enum(rng: random.Random, depth: int) -> dict[str, Any]:
    values = ["red", "gré\n", "", 1, 2.5, -3, None, True, ["a", 1], {"k": "v"}]
    return {"enum": rng.sample(values, rng.randint(1, 5))}


def _const(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"const": rng.choice(['say "hi"', 7, False, [1, {"a": None}]])}


def _pattern(rng: random.Random, depth: int) -> dict[str, Any]:
    pattern = rng.choice(
        ["^[a-z]+$", "^a.c", "[0-9]{2,3}$", "x|y", "^(foo|bar)-\\d+$", '^[^"]*$', "\\w\\s\\w", "^\\p{Lu}"]
    )
    return {"type": "string", "pattern": pattern} | ({"maxLength": 12} if rng.random() < 0.3 else {})


def _format(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "string", "format": rng.choice(["date", "time", "date-time", "email", "ipv4", "uuid", "uri"])}


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(["a", "b", "long name", "ü", 'q"uote', "tab\t", "z"], rng.randint(1, 4))
    schema: dict[str, Any] = {"type": "object", "properties": {name: random_schema(rng, depth) for name in names}}
    if rng.random() < 0.7:
        schema["required"] = rng.sample(names, rng.randint(0, len(names)))
    if rng.random() < 0.4:
        schema["additionalProperties"] = rng.choice([False, True, {"type": "integer"}])
    if rng.random() < 0.15:
        schema["minProperties"] = rng.randint(0, 2)
    if rng.random() < 0.15:
        schema["maxProperties"] = rng.randint(2, 5)
    if rng.random() < 0.15 and len(names) > 1:
        dependent = {names[0]: [names[1]]}
        schema |= rng.choice([
            {"dependentRequired": dependent},
            {"dependentSchemas": {names[0]: {"required": [names[1]], "maxProperties": 3}}},
        ])  # fmt: skip
    return schema


def _map(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "patternProperties": {"^x-": random_schema(rng, depth)}}
    if rng.random() < 0.5:
        schema["additionalProperties"] = rng.choice([False, {"type": "boolean"}])
    if rng.random() < 0.3:
        schema["propertyNames"] = {"maxLength": 8}
    return schema


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "items": random_schema(rng, depth)}
    if rng.random() < 0.5:
        schema["minItems"] = rng.randint(0, 2)
    if rng.random() < 0.5:
        schema["maxItems"] = rng.randint(2, 4)
    return schema


def _tuple(rng: random.Random, depth: int) -> dict[str, Any]:
    prefix = [random_schema(rng, 0) for _ in range(rng.randint(1, 3))]
    return {"type": "array", "prefixItems": prefix, "items": rng.choice([False, {"type": "null"}]), "minItems": 1}


def _unique(rng: random.Random, depth: int) -> dict[str, Any]:
    items = rng.choice([{"enum": ["a", "b", 1, 1.0, None]}, {"type": "boolean"}, {"type": "string", "maxLength": 3}])
    return {"type": "array", "items": items, "uniqueItems": True, "minItems": rng.randint(0, 2)}


def _contains(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "integer"}, "contains": {"minimum": rng.randint(0, 99)}}


def _any_of(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [random_schema(rng, 0), random_schema(rng, max(depth, 0))]}


def _all_of(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"allOf": [_object(rng, 0), {"properties": {"a": {"minimum": 3, "maxLength": 9}}, "required": ["b"]}]}


def _one_of(rng: random.Random, depth: int) -> dict[str, Any]:
    return rng.choice([
        {"oneOf": [{"type": "integer", "minimum": 5}, {"type": "number", "maximum": 8}]},
        {"oneOf": [{"type": "string", "maxLength": 4}, {"type": "string", "pattern": "^a"}, {"type": "null"}]},
        {"oneOf": [
            {"type": "object", "properties": {"k": {"const": "a"}, "v": _integer(rng, 0)}, "required": ["k", "v"]},
            {"type": "object", "properties": {"k": {"const": "b"}, "w": _string(rng, 0)}, "required": ["k"]},
        ]},
        {"oneOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": {}, "b": {"type": "null"}}},
    ])  # fmt: skip


def _not(rng: random.Random, depth: int) -> dict[str, Any]:
    return rng.choice([
        {"type": "string", "not": {"enum": ["", "a"]}},
        {"type": "integer", "not": {"minimum": 3, "maximum": 90}},
        {"type": ["string", "number", "null"], "not": {"type": "string"}},
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}, "not": {"required": ["a", "b"]}},
    ])  # fmt: skip


def _if(rng: random.Random, depth: int) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"kind": {"enum": ["x", "y"]}, "n": {"type": "integer"}, "s": {"type": "string"}},
        "required": ["kind"],
        "if": {"properties": {"kind": {"const": "x"}}},
        "then": {"required": ["n"]},
        "else": {"required": ["s"]},
    }

"""Whether one value satisfies a shape: for enum and const beside other keywords, and to tell alternatives apart."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from scumble.structure.automaton import Automaton
from scumble.structure.build import compile_tree
from scumble.structure.shapes import Conjunction, Shape, Strings, decimal, kind_of, same
from scumble.structure.style import Style
from scumble.structure.tree import Node, both, repeat, without


@lru_cache(maxsize=1024)  # equal rules are one tree, so that build.py makes one automaton of it
def strings_tree(rules: Strings, style: Style, longest: int | None = None) -> Node:
    """The texts, as spelled inside quotes. longest: a higher `most` is treated as this."""
    most = rules.most
    if most is not None and longest is not None:
        most = max(rules.least, min(most, longest))
    parts = list(rules.wanted)
    if rules.least or most is not None or not parts:
        parts.append(repeat(style.character, rules.least, most))
    return without(both(*parts), *rules.unwanted)


@lru_cache(maxsize=256)
def _language(rules: Strings, style: Style) -> Automaton:
    return compile_tree(strings_tree(Strings(rules.wanted, rules.unwanted), style))


def judge(doc: Any, value: Any, shape: Shape, depth: int = 60) -> bool:
    """Whether a value satisfies a shape, apart from `values` and `banned`. doc: the Document that the shape is from."""
    kind = kind_of(value)
    if depth == 0 or kind not in shape.kinds:
        return False
    if kind == "number":
        return decimal(value) in shape.numbers
    if kind == "string":
        rules = shape.strings
        if not _within(len(value), (rules.least, rules.most)):
            return False
        return not (rules.wanted or rules.unwanted) or _language(rules, doc.style).accepts(doc.style.inside(value).data)
    if kind == "array":
        if not _within(len(value), shape.length):
            return False
        if shape.unique and any(same(a, b) for i, a in enumerate(value) for b in value[:i]):
            return False
        if any(not any(judge_all(doc, item, (wanted,), depth) for item in value) for wanted in shape.contains):
            return False
        return all(judge_all(doc, item, shape.item(index), depth) for index, item in enumerate(value))
    if kind == "object":
        if not _within(len(value), shape.members) or any(name not in value for name in shape.required):
            return False
        rules = tuple(layer.names for layer in shape.objects if layer.names is not None)
        return all(
            judge_all(doc, item, shape.member(name, doc.matches), depth) and judge_all(doc, name, rules, depth)
            for name, item in value.items()
        )
    return True


def judge_all(doc: Any, value: Any, schemas: Conjunction, depth: int) -> bool:
    """Whether a value satisfies every schema."""
    return any(
        (shape.values is None or any(same(value, one) for one in shape.values))
        and not any(same(value, one) for one in shape.banned)
        and judge(doc, value, shape, depth - 1)
        for shape in doc.all_of(schemas)
    )


def _within(count: int, bounds: tuple[int, int | None]) -> bool:
    return bounds[0] <= count and (bounds[1] is None or count <= bounds[1])

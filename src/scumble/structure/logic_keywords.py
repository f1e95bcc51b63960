"""JSON Schema keywords that put schemas together: references, and, or, exactly one, not, if."""

from __future__ import annotations

from scumble.structure.document import Document
from scumble.structure.judge import judge
from scumble.structure.shapes import Located, Shape, silent


def ref(doc: Document, at: Located, negated: bool) -> list[Shape]:
    return doc.shapes(doc.resolve(at, doc.value(at, "$ref", str)))


def all_of(doc: Document, at: Located, negated: bool) -> list[Shape]:
    parts = doc.schemas(at, "allOf", negated)
    return [shape for part in parts for shape in doc.shapes(part)] if negated else doc.all_of(tuple(parts))


def any_of(doc: Document, at: Located, negated: bool) -> list[Shape]:
    parts = doc.schemas(at, "anyOf", negated)
    return doc.all_of(tuple(parts)) if negated else [shape for part in parts for shape in doc.shapes(part)]


def one_of(doc: Document, at: Located, negated: bool) -> list[Shape]:
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


def not_keyword(doc: Document, at: Located, negated: bool) -> list[Shape]:
    return silent(doc.shapes(doc.sub(at, "not", negated=not negated)))


def if_keyword(doc: Document, at: Located, negated: bool) -> list[Shape]:
    if negated:
        doc.left_out.append(f"{at.path}/if")
        return []
    then = (doc.sub(at, "then"),) if "then" in at.schema else ()
    other = (doc.sub(at, "else"),) if "else" in at.schema else ()
    if not then and not other:
        return [Shape()]
    return [*doc.all_of((doc.sub(at, "if"), *then)), *doc.all_of((doc.sub(at, "if", negated=True), *other))]

"""Shapes of a JSON Schema to the texts that we write for them, as a tree.

One style (style.py), members in the order of the schema, each text with one spelling.
Where a schema says nothing (`{}`, an object without properties) any JSON stands, nested as deep as `FREE_DEPTH`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from scumble.structure import tree
from scumble.structure.automaton import Automaton, Budget, TooLarge
from scumble.structure.build import compile_tree
from scumble.structure.document import Document
from scumble.structure.judge import judge, strings_tree
from scumble.structure.keywords import KEYWORDS
from scumble.structure.numbers import but
from scumble.structure.shapes import Conjunction, Located, Shape, decimal, kind_of, same
from scumble.structure.style import JSON, Style
from scumble.structure.tree import EMPTY, Node, StructureError, alt, both, repeat, seq, text, without

RECURSION = 3  # how often a schema may stand inside itself; less where the result would be too large
FREE_DEPTH = 3  # how deep values nest that no schema describes
LONGEST_COUNT = 50  # items of an array that are counted one by one; a larger maxItems is treated as this
LONGEST_TEXT = 1000  # characters of a text, likewise
MOST_NODES = 20_000


def compile_schema(schema: Any, budget: Budget) -> Automaton:
    """The texts that satisfy a schema. Raises StructureError: unsupported, contradictory or too large."""
    if not isinstance(schema, dict | bool):
        raise StructureError(f"a JSON Schema must be an object or a boolean, found {type(schema).__name__}")
    doc = document(schema)
    machine = compile_documents([doc], lambda nodes: nodes[0], budget)
    if machine.is_empty:
        raise contradiction(doc)
    return machine


def document(schema: Any, style: Style = JSON) -> Document:
    return Document(schema, KEYWORDS, style)


def compile_documents(
    docs: Sequence[Document], around: Callable[[list[Node]], Node], budget: Budget, also: Conjunction = ()
) -> Automaton:
    """The texts that `around` makes of the texts that satisfy each document, and `also` with it."""
    for depth in range(RECURSION, 0, -1):
        lowerings = [Lowering(doc, depth, budget) for doc in docs]
        try:
            nodes = [one.node((Located(one.doc.root, "#"), *also)) for one in lowerings]
            return compile_tree(around(nodes), budget)
        except TooLarge:
            if depth == 1 or not any(one.is_recursive for one in lowerings):
                raise
        except RecursionError:
            raise StructureError("the schema is nested too deeply; the limit is about 100 levels") from None
    raise AssertionError("the smallest depth returns or raises")


def contradiction(doc: Document) -> StructureError:
    lost = f"; what could not be expressed: {', '.join(doc.left_out[:3])}" if doc.left_out else ""
    return StructureError(f"no value satisfies the schema: it contradicts itself, or would have no end{lost}")


class Lowering:
    """One reading of a document, with schemas nested in themselves up to `depth` times."""

    def __init__(self, doc: Document, depth: int, budget: Budget) -> None:
        self.doc, self.depth, self.budget = doc, depth, budget
        self.style = doc.style
        self.is_recursive = False
        self._stack: Counter[tuple[Any, ...]] = Counter()
        self._done: dict[tuple[Any, ...], Node] = {}
        self._nodes = 0
        self._cut = 0  # how often a recursion was cut; what was made meanwhile holds at that depth only

    def node(self, schemas: Conjunction) -> Node:
        """The values that satisfy every schema."""
        schemas = tuple({s.key: s for s in schemas if not _says_nothing(s)}.values())
        key = tuple(s.key for s in schemas)
        if key in self._done:
            return self._done[key]
        limit = self.depth if key else FREE_DEPTH
        if self._stack[key] >= limit:
            self.is_recursive |= bool(key)
            self._cut += 1
            return EMPTY
        self._nodes += 1
        if self._nodes > MOST_NODES:
            raise TooLarge(f"the schema spreads out to more than {MOST_NODES} places; make it smaller or less nested")
        self.budget.check()
        if self._stack.total() > self.style.deepest:
            self.doc.fail(schemas[0].path if schemas else "#", f"values nested more than {self.style.deepest} deep")
        self._stack[key] += 1
        cut = self._cut
        found = alt(*(self.shape(shape, schemas[0].path if schemas else "#") for shape in self.doc.all_of(schemas)))
        self._stack[key] -= 1
        if self._cut == cut:
            self._done[key] = found
        return found

    def shape(self, shape: Shape, path: str) -> Node:
        if shape.values is not None:
            values = [value for value in shape.values if judge(self.doc, value, shape)]
            return alt(*(self.literal(value, path) for value in values))
        kinds = shape.kinds
        if not shape.explicit and shape.hints:
            kinds = kinds & shape.hints  # keywords of some kinds say what is meant
        banned = {kind: [value for value in shape.banned if kind_of(value) == kind] for kind in kinds}
        parts: list[Node] = []
        if "null" in kinds and not banned["null"]:
            parts.append(text("null"))
        if "boolean" in kinds:
            parts += [self.style.literal(value) for value in (True, False) if value not in banned["boolean"]]
        if "number" in kinds:
            parts.append(but(shape.numbers.tree(), [decimal(value) for value in banned["number"]]))
        if "string" in kinds:
            unwanted = [self.style.inside(value) for value in banned["string"]]
            parts.append(self.style.string(without(self._texts(shape), *unwanted)))
        for kind, make in (("array", self.array), ("object", self.object)):
            if kind in kinds:
                if banned[kind]:
                    self.doc.left_out.append(f"{path}/not")
                else:
                    parts.append(make(shape, path))
        return alt(*parts)

    def literal(self, value: Any, path: str) -> Node:
        if self._stack.total() + _levels(value) > self.style.deepest:
            self.doc.fail(path, f"values nested more than {self.style.deepest} deep")
        return self.style.literal(value)

    def _texts(self, shape: Shape) -> Node:
        return strings_tree(shape.strings, self.style, LONGEST_TEXT)

    # --- arrays -------------------------------------------------------------------------------------------------------

    def array(self, shape: Shape, path: str) -> Node:
        least, most = shape.length
        if most is not None:
            most = max(least, min(most, LONGEST_COUNT))
        if least > 10 * LONGEST_COUNT:
            self.doc.fail(path, f"minItems {least} is above what is supported, {10 * LONGEST_COUNT}")
        if shape.contains:
            return self._containing(shape, path)
        if shape.unique and (most is None or most > 1):
            return seq(text("["), self._unique(shape, path, least, most), text("]"))
        prefix = shape.prefix if most is None else min(shape.prefix, most)
        rest = repeat(
            self.node(shape.item(prefix)) if most is None or most > prefix else EMPTY,
            max(0, least - prefix), None if most is None else most - prefix, self.style.comma,
        )  # fmt: skip
        if prefix == 0:
            return seq(text("["), rest, text("]"))
        if not isinstance(rest, tree.Empty):  # behind the prefix every item has its comma
            rest = (
                seq(self.style.comma, rest)
                if least > prefix
                else alt(tree.EPSILON, seq(self.style.comma, self._some(shape, prefix, most)))
            )
        for index in range(prefix - 1, -1, -1):
            here = seq(self.style.comma if index else tree.EPSILON, self.node(shape.item(index)), rest)
            rest = here if index < least else alt(tree.EPSILON, here)
        return seq(text("["), rest, text("]"))

    def _some(self, shape: Shape, prefix: int, most: int | None) -> Node:
        if most is not None and most <= prefix:
            return EMPTY
        return repeat(self.node(shape.item(prefix)), 1, None if most is None else most - prefix, self.style.comma)

    def _unique(self, shape: Shape, path: str, least: int, most: int | None) -> Node:
        """Items that differ, in an order that shows it: that of the schema's values, or of the first characters."""
        if shape.prefix:
            self.doc.fail(f"{path}/uniqueItems", "uniqueItems beside items with schemas of their own is not supported")
        shapes = self.doc.all_of(shape.item(0))
        values: list[Any] = []
        for one in shapes:
            choices = one.values if one.values is not None else (True, False) if one.kinds == {"boolean"} else None
            if choices is None:
                return self._unique_texts(shapes, path, least, most)
            for value in choices:
                if judge(self.doc, value, one) and not any(same(value, known) for known in (*values, *one.banned)):
                    values.append(value)
        return tree.Members(
            tuple((self.literal(value, path), False) for value in values), self.style.comma, EMPTY, least, most
        )

    def _unique_texts(self, shapes: list[Shape], path: str, least: int, most: int | None) -> Node:
        one = shapes[0]
        if len(shapes) > 1 or not (one.kinds == {"string"} or (not one.explicit and one.hints == {"string"})):
            self.doc.fail(f"{path}/uniqueItems", "uniqueItems is supported for enum, boolean and string items only")
        unwanted = [self.style.inside(value) for value in one.banned if isinstance(value, str)]
        texts = without(self._texts(one), *unwanted)
        letters = [chr(point) for point in range(0x21, 0x7F) if chr(point) not in '"\\']
        anything = repeat(self.style.character)
        known = tree.normal((ord(letter), ord(letter)) for letter in letters)
        firsts: list[Node] = [*map(self.style.inside, letters), tree.Chars(tree.complement(known), self.style.quoted)]
        items = tuple((self.style.string(both(texts, seq(first, anything))), False) for first in firsts)
        return tree.Members(items, self.style.comma, EMPTY, least, most)

    def _containing(self, shape: Shape, path: str) -> Node:
        least, most = shape.length
        if len(shape.contains) > 1 or shape.prefix or shape.unique or least > 1 or most is not None:
            self.doc.fail(f"{path}/contains", "contains beside other limits on an array is not supported")
        item, wanted = self.node(shape.item(0)), self.node(shape.item(0) + shape.contains)
        before, behind = repeat(seq(item, self.style.comma)), repeat(seq(self.style.comma, item))
        return seq(text("["), before, wanted, behind, text("]"))

    # --- objects ------------------------------------------------------------------------------------------------------

    def object(self, shape: Shape, path: str) -> Node:
        declared = list(dict.fromkeys(name for layer in shape.objects for name in layer.properties))
        declared = self.style.ordered([*declared, *(name for name in shape.required if name not in declared)])
        rules = tuple(layer.names for layer in shape.objects if layer.names is not None)
        items: list[tuple[Node, bool]] = []
        for name in declared:
            value = self.node(shape.member(name, self.doc.matches))
            if rules and not self._may_be_called(name, rules):
                value = EMPTY
            required = name in shape.required
            if isinstance(value, tree.Empty):
                if required:
                    return EMPTY
                continue
            items.append((seq(self.style.name(name), self.style.colon, value), required))
        loop = self._other_members(shape, declared, rules)
        least, most = shape.members
        needed = sum(required for _, required in items)
        if least <= needed:
            least = 0
        if most is not None and isinstance(loop, tree.Empty) and most >= len(items):
            most = None
        if least > len(items) + 1 and not isinstance(loop, tree.Empty):  # names that repeat would be one member
            self.doc.left_out.append(f"{path}/minProperties")
            return EMPTY
        if least > needed and most is not None and not isinstance(loop, tree.Empty):
            loop = EMPTY if len(items) >= least else loop
            if not isinstance(loop, tree.Empty) and least > 1:
                self.doc.fail(path, "minProperties beside maxProperties, for members without names, is not supported")
        if most is not None:
            most = max(least, min(most, max(LONGEST_COUNT, needed)))
        return seq(text("{"), tree.Members(tuple(items), self.style.comma, loop, least, most), text("}"))

    def _may_be_called(self, name: str, rules: Conjunction) -> bool:
        return any(judge(self.doc, name, shape) for shape in self.doc.all_of(rules) if not _excluded(name, shape))

    def _other_members(self, shape: Shape, declared: list[str], rules: Conjunction) -> Node:
        """One member without a name in the schema: patternProperties, additionalProperties, or any at all."""
        patterns = {p: self.doc.pattern(p) for layer in shape.objects for p, _ in layer.patterns}
        others = tuple(layer.others for layer in shape.objects if layer.others is not None)
        taken = [self.style.inside(name) for name in declared]
        allowed = repeat(self.style.character)
        if rules:
            names = [one for one in self.doc.all_of(rules) if "string" in one.kinds]
            allowed = alt(*(self._name(one) for one in names))
        found: list[Node] = []
        for pattern, language in patterns.items():
            schemas: list[Located] = []
            for layer in shape.objects:
                own = [schema for one, schema in layer.patterns if one == pattern]
                schemas += own or ([] if layer.others is None else [layer.others])
            rivals = [other for name, other in patterns.items() if name != pattern]
            value = self.node(tuple(schemas))
            if not isinstance(value, tree.Empty):
                name = without(both(allowed, language) if rules else language, *taken, *rivals)
                found.append(seq(self.style.names(name), self.style.colon, value))
        if others or not (declared or patterns):
            value = self.node(others)
            if not isinstance(value, tree.Empty):
                name = without(allowed, *taken, *patterns.values())
                found.append(seq(self.style.names(name), self.style.colon, value))
        return alt(*found)

    def _name(self, shape: Shape) -> Node:
        if shape.values is not None:
            return alt(
                *(self.style.inside(v) for v in shape.values if isinstance(v, str) and judge(self.doc, v, shape))
            )
        unwanted = [self.style.inside(value) for value in shape.banned if isinstance(value, str)]
        return without(self._texts(shape), *unwanted)


def _levels(value: Any) -> int:
    """How deep a value nests: 0 for what is neither an object nor a list."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inside is None else 1 + max(map(_levels, inside), default=0)


def _excluded(name: str, shape: Shape) -> bool:
    return (shape.values is not None and name not in shape.values) or name in shape.banned


def _says_nothing(located: Located) -> bool:
    return (located.schema is True or located.schema == {}) and not located.negated

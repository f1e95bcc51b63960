"""One JSON Schema document: the normal form of its schemas (shapes.py), references, and places in it for errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, NoReturn
from urllib.parse import unquote

from scumble.errors import shown
from scumble.structure.automaton import Automaton
from scumble.structure.build import compile_tree
from scumble.structure.pattern import parse_pattern
from scumble.structure.shapes import Conjunction, Located, ObjectLayer, Shape, joined, silent
from scumble.structure.style import JSON, Style
from scumble.structure.tree import Node, StructureError

MOST_SHAPES = 512  # alternatives of one place of a schema, once everything is spread out

REFUSED = {
    "$dynamicRef": "a reference that depends on how the place was reached",
    "$recursiveRef": "a reference that depends on how the place was reached",
    "unevaluatedItems": "items that other keywords have not looked at",
    "$data": "a limit that stands in the value itself",
    "$merge": "a schema that is put together from others",
    "$patch": "a schema that is put together from others",
    "minContains": "a count of matching items",
    "maxContains": "a count of matching items",
}
SILENT = {
    "$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary", "$comment", "$defs",
    "definitions", "title", "description", "default", "deprecated", "readOnly", "writeOnly", "examples", "example",
    "contentEncoding", "contentMediaType", "contentSchema", "then", "else", "nullable", "discriminator", "xml",
    "externalDocs",
}  # fmt: skip
_KIND_NAMES = {dict: "an object", list: "a list", str: "a string", int: "a number", bool: "true or false"}

Reader = Callable[["Document", Located, bool], list[Shape]]  # (document, schema, negated) -> alternatives


class Document:
    """One schema document, read on demand. keywords: how each is read. style: how values are going to be written."""

    def __init__(self, root: Any, keywords: Mapping[str, Reader], style: Style = JSON) -> None:
        self.root, self.style = root, style
        self._keywords = keywords
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

    def is_open(self, located: Located) -> bool:
        """Whether its shapes are being worked out, so that asking for them would lead in a circle."""
        return located.key in self._open

    def _assertion(self, located: Located) -> list[Shape]:
        schema = self._checked(located)
        shapes = [Shape()]
        for keyword in schema:
            reader = self._keywords.get(keyword)
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
            reader = self._keywords.get(keyword)
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
            if keyword not in self._keywords and keyword not in SILENT and keyword not in REFUSED:
                near = get_close_matches(keyword, self._keywords, 1, 0.85)
                if (
                    near and keyword[0].isalpha() and not keyword.startswith("x-")
                ):  # those are extensions, which limit nothing
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

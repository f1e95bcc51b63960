"""What a caller may ask of an answer: a JSON Schema, a pattern, one of some texts, a grammar. Each is a value that can
be compared, named by a digest, and compiled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from scumble.errors import shown
from scumble.structure import tree
from scumble.structure.automaton import START, Automaton, Budget
from scumble.structure.build import compile_tree, edges_of
from scumble.structure.grammar import compile_grammar
from scumble.structure.lower import compile_schema
from scumble.structure.pattern import parse_pattern
from scumble.structure.tree import Node, StructureError

LARGEST_SCHEMA = 4_000_000  # bytes of JSON
MOST_CHOICES = 10_000


class Language(Protocol):
    """A set of texts."""

    @property
    def key(self) -> str:
        """Two languages with the same key are the same."""
        ...

    def automaton(self, budget: Budget) -> Automaton:
        """Raises StructureError: unsupported, contradictory, too large."""
        ...

    def parse(self, text: str) -> Any:
        """What a text of the language means: the value of JSON, else the text."""
        ...


@dataclass(frozen=True)
class JsonSchema:
    """JSON that satisfies a schema. source: the schema as JSON."""

    source: str

    @staticmethod
    def of(schema: Any) -> JsonSchema:
        """From a dict, a bool, JSON text, or a pydantic model's class. Raises StructureError."""
        if hasattr(schema, "model_json_schema"):
            schema = schema.model_json_schema()
        if isinstance(schema, str | bytes):
            if len(schema) > LARGEST_SCHEMA:
                raise StructureError(f"the schema has {len(schema)} bytes; the limit is {LARGEST_SCHEMA}")
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise StructureError(f"the schema is not JSON: {error}") from None
        if not isinstance(schema, dict | bool):
            raise StructureError(f"a JSON Schema must be an object or a boolean, found {shown(schema)}")
        try:
            source = json.dumps(schema, ensure_ascii=True, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise StructureError(f"the schema cannot be written as JSON: {error}") from None
        if len(source) > LARGEST_SCHEMA:
            raise StructureError(f"the schema has {len(source)} bytes; the limit is {LARGEST_SCHEMA}")
        return JsonSchema(source)

    @property
    def key(self) -> str:
        return "json_schema " + self.source

    def automaton(self, budget: Budget) -> Automaton:
        return compile_schema(json.loads(self.source), budget)

    def parse(self, text: str) -> Any:
        return json.loads(text)


@dataclass(frozen=True)
class Regex:
    """Texts that a pattern matches from their first to their last character."""

    pattern: str

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            raise StructureError(f"regex must be a string, found {shown(self.pattern)}")

    @property
    def key(self) -> str:
        return "regex " + self.pattern

    def automaton(self, budget: Budget) -> Automaton:
        return _checked(parse_pattern(self.pattern), budget, f"the pattern {shown(self.pattern)} matches no text")

    def parse(self, text: str) -> str:
        return text


@dataclass(frozen=True)
class Choices:
    """One of some texts."""

    texts: tuple[str, ...]

    @staticmethod
    def of(texts: Sequence[str]) -> Choices:
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
            raise StructureError(f"choices must be a list of at least one text, found {shown(texts)}")
        if len(texts) > MOST_CHOICES:
            raise StructureError(f"there are {len(texts)} choices; the limit is {MOST_CHOICES}")
        for text in texts:
            if not isinstance(text, str):
                raise StructureError(f"a choice must be a text, found {shown(text)}")
        return Choices(tuple(dict.fromkeys(texts)))

    @property
    def key(self) -> str:
        return "choices " + json.dumps(self.texts)

    def automaton(self, budget: Budget) -> Automaton:
        return _checked(tree.alt(*map(tree.text, self.texts)), budget, "there is no choice")

    def parse(self, text: str) -> str:
        return text


@dataclass(frozen=True)
class Grammar:
    """Texts of an EBNF grammar, see `structure.grammar`."""

    source: str

    def __post_init__(self) -> None:
        if not isinstance(self.source, str):
            raise StructureError(f"grammar must be a string, found {shown(self.source)}")

    @property
    def key(self) -> str:
        return "grammar " + self.source

    def automaton(self, budget: Budget) -> Automaton:
        return compile_grammar(self.source, budget)

    def parse(self, text: str) -> str:
        return text


@dataclass(frozen=True)
class Thinking:
    """A language behind free thinking: nothing, or `<|channel>thought`, any text, and `<channel|>`.

    opened: the prompt has opened the channel already, so thoughts and the closing marker come first.
    """

    language: Language
    opening: int
    closing: int
    opened: bool = False

    @property
    def key(self) -> str:
        return f"thinking {self.opening} {self.closing} {self.opened} {self.language.key}"

    def automaton(self, budget: Budget) -> Automaton:
        thoughts = tree.seq(tree.repeat(tree.ANY_CHAR), tree.Symbol(self.closing))
        if not self.opened:
            thoughts = tree.optional(tree.seq(tree.Symbol(self.opening), tree.text("thought\n"), thoughts))
        return compile_tree(tree.seq(thoughts, as_tree(self.language.automaton(budget))), budget)

    def parse(self, text: str) -> Any:
        return self.language.parse(text)


@dataclass(frozen=True)
class Template:
    """Fixed texts with holes between them: (text, what may stand behind it, characters at most) …, and a last text."""

    parts: tuple[tuple[str, Language | None, int | None], ...]
    last: str

    @property
    def key(self) -> str:
        parts = [(text, None if one is None else one.key, most) for text, one, most in self.parts]
        return "template " + json.dumps([parts, self.last])

    def automaton(self, budget: Budget) -> Automaton:
        nodes: list[Node] = []
        for (text, *_), (hole, _) in zip(self.parts, self._holes(budget), strict=True):
            nodes += [tree.text(text), hole]
        return _checked(tree.seq(*nodes, tree.text(self.last)), budget, "no text fits into a hole of the template")

    def _holes(self, budget: Budget) -> list[tuple[Node, Automaton]]:
        found = []
        for _, language, most in self.parts:
            node: Node = tree.repeat(tree.ANY_CHAR, 0, most)
            if language is not None:
                own = as_tree(language.automaton(budget))
                node = own if most is None else tree.both(own, node)
            found.append((node, compile_tree(node, budget)))
        return found

    def parse(self, text: str) -> tuple[str, ...]:
        """What stands in the holes. Where several readings fit, each hole is as short as the rest allows."""
        holes = [machine for _, machine in self._holes(Budget())]
        fixed = [one[0] for one in self.parts] + [self.last]
        assert text.startswith(fixed[0])
        # reading[k]: where hole k may begin -> where it began to be possible; walked back from the end.
        ends: list[dict[int, int]] = []
        begins = {len(fixed[0].encode())}
        data = text.encode()
        for machine, behind in zip(holes, (one.encode() for one in fixed[1:]), strict=True):
            reached: dict[int, int] = {}
            for begin in sorted(begins, reverse=True):
                state = 1
                for end in range(begin, len(data) + 1):
                    if machine.ends[state] and data.startswith(behind, end):
                        reached.setdefault(end, begin)
                    if end == len(data):
                        break
                    state = int(machine.step[state, machine.column[data[end]]])
                    if state == 0:
                        break
            ends.append(reached)
            begins = {end + len(behind) for end in reached}
        at, found = len(data), []
        for reached, behind in zip(reversed(ends), (one.encode() for one in reversed(fixed[1:])), strict=True):
            end = at - len(behind)
            found.append(data[reached[end] : end].decode())
            at = reached[end]
        return tuple(reversed(found))


def as_tree(machine: Automaton) -> Node:
    """An automaton as a leaf of a tree."""
    edges = tuple((source - START, low, high, target - START) for source, low, high, target in edges_of(machine))
    return tree.Table(edges, frozenset((np.flatnonzero(machine.ends) - START).tolist()), machine.symbols)


def _checked(node: Node, budget: Budget, empty: str) -> Automaton:
    machine = compile_tree(node, budget)
    if machine.is_empty:
        raise StructureError(empty)
    return machine

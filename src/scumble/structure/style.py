"""How values are written: as JSON, or as the arguments of a tool call (text/tool_calls.py reads those).

    {"city": "a \\"b\\"", "days": [1, 2]}          JSON, in the style of Python's json.dumps
    {city:<|"|>a "b"<|"|>,days:[1,2]}            a call: <|"|> is one token, and nothing in a string needs an escape

In either, every value has exactly one spelling.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from scumble.structure import tree
from scumble.structure.tree import ANY, Chars, Node, StructureError, Text, both, quoted_text, repeat, seq, text

# Names that a call writes without quotes: what text/tool_calls.py takes for one name. Names that no schema spells out
# have no white space, control characters or angle brackets either.
_BARE = re.compile(r"[^\s:,{}\[\]\"'](?:[^:,{}\[\]\"']*[^\s:,{}\[\]\"'])?")
_NO_SPACE = [(0, 0x20), (0x7F, 0xA0), (0x1680, 0x1680), (0x2000, 0x200F), (0x2028, 0x202F), (0x205F, 0x2064)]
_MARKS = [(ord(mark), ord(mark)) for mark in ":,{}[]\"'<>"]
_BARE_CHAR = Chars(tree.complement(tree.normal([*_NO_SPACE, *_MARKS, (0x3000, 0x3000), (0xFEFF, 0xFEFF)])))
DEEPEST_CALL = 60  # of the 64 levels that text/tool_calls.py reads


@dataclass(frozen=True)
class Style:
    """quote: stands on both sides of a string. quoted: a string's characters are spelled with JSON's escapes.

    bare: names have no quotes where they can do without, and stand in alphabetical order, as chat templates write them.
    deepest: how deep values may nest.
    """

    quote: Node
    comma: Text
    colon: Text
    quoted: bool
    bare: bool
    deepest: int

    @property
    def character(self) -> Chars:
        """Any character of a string."""
        return Chars(ANY, self.quoted)

    def inside(self, value: str) -> Text:
        """What stands between the quotes of a string."""
        return quoted_text(value) if self.quoted else text(value)

    def string(self, inside: Node) -> Node:
        """Strings, from the language of what stands between their quotes."""
        return seq(self.quote, inside, self.quote)

    def name(self, name: str) -> Node:
        """A member's name."""
        return text(name) if self.bare and _BARE.fullmatch(name) else self.string(self.inside(name))

    def names(self, inside: Node) -> Node:
        """Members' names, from the language of what stands between their quotes."""
        return both(inside, repeat(_BARE_CHAR, 1)) if self.bare else self.string(inside)

    def ordered(self, names: Iterable[str]) -> list[str]:
        """A schema's names in the order in which an object has them."""
        return sorted(names, key=str.lower) if self.bare else list(names)

    def literal(self, value: Any) -> Node:
        """A value of JSON, as it is written. Raises StructureError."""
        if isinstance(value, str):
            return self.string(self.inside(value))
        if isinstance(value, list):
            return self._between("[", [self.literal(item) for item in value], "]")
        if isinstance(value, dict):
            pairs = [seq(self.name(name), self.colon, self.literal(value[name])) for name in self.ordered(value)]
            return self._between("{", pairs, "}")
        try:
            return text(json.dumps(value, allow_nan=False))
        except (ValueError, TypeError) as error:
            raise StructureError(f"a value of the schema cannot be written as JSON: {error}") from None

    def _between(self, opening: str, parts: list[Node], closing: str) -> Node:
        inside = [piece for part in parts for piece in (self.comma, part)][1:]
        return seq(text(opening), *inside, text(closing))


JSON = Style(text('"'), text(", "), text(": "), quoted=True, bare=False, deepest=200)


def of_calls(quote: int) -> Style:
    """quote: the id of the token on both sides of a string."""
    return Style(tree.Symbol(quote), text(","), text(":"), quoted=False, bare=True, deepest=DEEPEST_CALL)

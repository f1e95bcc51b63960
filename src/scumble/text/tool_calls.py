"""What a model wrote between `<|tool_call>` and `<tool_call|>`, parsed.

    call:weather{city:<|"|>New York, {NY}<|"|>,days:3,units:[<|"|>C<|"|>,true,null],where:{lat:40.7}}

Keys are bare, strings stand between two `<|"|>` tokens, everything else is as in JSON. The parser gets the tokens, not
their text: a string may hold braces, commas, quotes and even the letters `<|"|>`, and still ends where its token says.

Models stray from the form in ways that leave no doubt of what was meant; these are read as well: quotes of JSON or
Python instead of the token, quoted keys, Python's True, False and None, bare words, white space, a comma too many, and
a string of which only the closing token was written. Whatever is in doubt is refused, never guessed: a call that was
not meant is worse than none.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

MAX_DEPTH = 64  # of nested arguments; nobody's function has more, and a bomb has


class ParsedCall(NamedTuple):
    name: str
    arguments: dict[str, Any]


class MalformedCall(Exception):
    """The tokens are no call, or no whole one. For callers inside the package; it never leaves it."""


class _Quote:
    """The token that stands on both sides of a string."""

    def __repr__(self) -> str:
        return "QUOTE"


QUOTE = _Quote()
Item = str | _Quote

_NAME = re.compile(r"\s*call\s*:\s*([^\s{}\[\]():,\"'][^\s{}\[\]():,\"']*)\s*\{")
_KEY = re.compile(r"[^\s:,{}\[\]\"'][^:,{}\[\]\"']*")
_BARE = re.compile(r"[^,{}\[\]]*")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d*)?([eE][+-]?\d+)?")  # 007 is a word: an agent's name, not seven
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_PYTHON_STRING = re.compile(r"'((?:[^'\\]|\\.)*)'", re.DOTALL)
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SPACE = re.compile(r"\s*")


def parse_calls(items: Iterable[Item]) -> tuple[ParsedCall, ...]:
    """One or more calls that stand between a pair of markers.

    Args:
        items: the text between the markers, cut at the quote tokens, each of which is a QUOTE.

    Raises:
        MalformedCall: what stands there is no call, breaks off, or can be read in two ways.
    """
    reader = _Reader(items)
    calls = [reader.call()]
    while not reader.at_end():
        reader.skip(",")
        calls.append(reader.call())
    return tuple(calls)


class _Reader:
    """A cursor over items: text pieces and quotes, neighbouring text joined."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items: list[Item] = []
        for item in items:
            if isinstance(item, str) and self._items and isinstance(self._items[-1], str):
                self._items[-1] += item
            elif item != "":
                self._items.append(item)
        self._index = 0  # of the present item
        self._at = 0  # in it, where it is text

    def call(self) -> ParsedCall:
        match = _NAME.match(self._text(), self._at)
        if match is None:
            raise MalformedCall("a call begins with call:name{")
        self._at = match.end()
        return ParsedCall(match[1], self._object(1))

    def at_end(self) -> bool:
        self._skip_space()
        return self._index == len(self._items)

    def skip(self, character: str) -> bool:
        """Step over white space and, if it comes next, one character; whether it did."""
        self._skip_space()
        if self._text()[self._at : self._at + 1] != character:
            return False
        self._at += 1
        return True

    def _text(self) -> str:
        """The present item's text; "" where a quote stands, or nothing."""
        item = self._items[self._index] if self._index < len(self._items) else QUOTE
        return item if isinstance(item, str) else ""

    def _skip_space(self) -> None:
        match = _SPACE.match(self._text(), self._at)
        self._at = match.end() if match else self._at
        if self._text() and self._at == len(self._text()):
            self._index, self._at = self._index + 1, 0

    def _at_quote(self) -> bool:
        self._skip_space()
        return self._index < len(self._items) and self._items[self._index] is QUOTE

    def _object(self, depth: int) -> dict[str, Any]:
        """The pairs up to `}`; the `{` has been read."""
        found: dict[str, Any] = {}
        while not self.skip("}"):
            key = self._key()
            if not self.skip(":"):
                raise MalformedCall(f"no colon behind the key {key!r}")
            found[key] = self._value(depth)
            if not self.skip(","):
                if self.skip("}"):
                    break
                raise MalformedCall("a comma or } must follow a value")
        return found

    def _array(self, depth: int) -> list[Any]:
        """The values up to `]`; the `[` has been read."""
        found = []
        while not self.skip("]"):
            found.append(self._value(depth))
            if not self.skip(","):
                if self.skip("]"):
                    break
                raise MalformedCall("a comma or ] must follow a value")
        return found

    def _key(self) -> str:
        quoted = self._quoted()
        if quoted is not None:
            return quoted
        match = _KEY.match(self._text(), self._at)
        if match is None:
            raise MalformedCall("a key is missing")
        self._at = match.end()
        return match[0].strip()

    def _value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise MalformedCall(f"arguments are nested more than {MAX_DEPTH} deep")
        if self.skip("{"):
            return self._object(depth + 1)
        if self.skip("["):
            return self._array(depth + 1)
        quoted = self._quoted()
        return self._bare() if quoted is None else quoted

    def _quoted(self) -> str | None:
        """A string between quote tokens or between ordinary quotes; None where something else stands."""
        if self._at_quote():
            return self._between_quotes()
        text = self._text()
        match = _JSON_STRING.match(text, self._at) or _PYTHON_STRING.match(text, self._at)
        if match is None:
            return None
        self._at = match.end()
        if match[0].startswith("'"):
            return re.sub(r"\\(['\\])", r"\1", match[1])
        try:
            string = json.loads(match[0], strict=False)
            string.encode()  # an escape may spell half a character: "\\ud800"
        except ValueError as error:
            raise MalformedCall(f"a string in ordinary quotes is damaged: {error}") from None
        return string

    def _between_quotes(self) -> str:
        self._index, self._at = self._index + 1, 0
        text = self._text()
        if text:
            self._index += 1
        if self._index >= len(self._items):
            raise MalformedCall("a string does not end")
        self._index += 1  # the closing quote: two texts never stand side by side
        return text

    def _bare(self) -> Any:
        """A number, true, false, null or a bare word; or a string that lacks its opening quote token."""
        text = self._text()
        match = _BARE.match(text, self._at)
        word = match[0] if match else ""
        behind = text[self._at + len(word) :]
        if behind:  # a comma or bracket follows, so the word ends here, unless a lone closing quote says otherwise
            self._at += len(word)
            return _literal(word.strip())
        if word.strip() and not any(sign in word for sign in ":\"'") and self._index + 1 < len(self._items):
            self._index, self._at = self._index + 2, 0  # the text, and the quote that closes it
            return word
        raise MalformedCall("a value breaks off")


def _literal(word: str) -> Any:
    if not word or '"' in word or "'" in word:
        raise MalformedCall(f"{word!r} is no value")
    if word in _WORDS:
        return _WORDS[word]
    if _NUMBER.fullmatch(word):
        try:
            number = float(word) if any(sign in word for sign in ".eE") else int(word)
        except ValueError:  # Python reads no whole numbers of more than some thousand digits
            raise MalformedCall("a number has too many digits") from None
        if isinstance(number, float) and not math.isfinite(number):
            raise MalformedCall(f"the number {word} is too large")
        return number
    return word


def spelled(items: Sequence[Item]) -> str:
    """The same items as text for people, quotes as `"`."""
    return "".join(item if isinstance(item, str) else '"' for item in items)

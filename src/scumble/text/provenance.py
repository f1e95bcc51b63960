"""Telling the template's own special tokens from those that a user spelled out.

A rendered conversation is one string. Where a user wrote `<turn|>` in it, nothing shows that the template did not. So
before rendering, every special token's text inside the caller's strings is wrapped in two private-use characters that
occur nowhere else; templates carry them along like any letter. Afterwards, wrapped tokens are the caller's, and bare
ones the template's. The marks are then taken out again, and each stretch between the template's special tokens is
encoded as one piece: the tokenizer cuts there anyway, so all ids but those of the spelled-out tokens stay what they
would have been.

A token can also be put together from harmless parts: by two strings that the template writes side by side, or where
it cuts something out of the middle. Marks at strings' ends that could complete a token, and marks left alone by a cut,
keep such parts apart. Limits:

- a template that compares content with exact strings sees the marks (only in strings that hold a special token's text,
  or an end of one, at all);
- one that deletes ordinary text from the middle of content, say `replace('x', '')`, can still join what was around it;
- a tokenizer that puts a space before the first word of a text only (Metaspace "first"; not Gemma's, not byte-level
  ones) puts one before each piece.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_PRIVATE_USE = range(0xE000, 0xF900)


@dataclass(frozen=True)
class Piece:
    """A stretch of a rendered conversation, without marks."""

    text: str
    special: bool  # whether special tokens in it are the template's own


class Marks:
    """The marks of one render.

    Args:
        special_tokens: the texts to guard.
        taken: texts in which the two mark characters must not occur: everything that goes into the render.
    """

    def __init__(self, special_tokens: Iterable[str], taken: str) -> None:
        self._guarded = guarded = _guard(tuple(special_tokens))
        # Their JSON escapes count as well: a template may write `tojson(ensure_ascii=true)`.
        lowered = taken.lower()
        free = (chr(code) for code in _PRIVATE_USE if chr(code) not in taken and f"\\u{code:04x}" not in lowered)
        self.open, self.close = next(free), next(free)
        self._rendered = re.compile(f"{self.open}(?:{guarded.pattern}){self.close}|({guarded.pattern})")

    def mark(self, value: Any) -> Any:
        """A copy of a JSON value with all its strings marked; equal to `value` where nothing needed it."""
        if isinstance(value, str):
            return self._mark_text(value)
        if isinstance(value, Mapping):
            return {self.mark(key): self.mark(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.mark(item) for item in value]
        return value

    def pieces(self, rendered: str) -> Iterator[Piece]:
        """Cut a rendered conversation into the pieces to be encoded one by one."""
        for mark in (self.open, self.close):
            rendered = re.sub(rf"\\u{ord(mark):04x}", mark, rendered, flags=re.IGNORECASE)
        trusted = ""
        for text, is_token in self._split(rendered):
            if not is_token and (self.open in text or self.close in text):
                if trusted:
                    yield Piece(trusted, special=True)
                    trusted = ""
                yield Piece(self.without(text), special=False)
            else:
                trusted += text
        if trusted:
            yield Piece(trusted, special=True)

    def without(self, text: str) -> str:
        """The same text without marks."""
        return text.replace(self.open, "").replace(self.close, "")

    def _split(self, rendered: str) -> Iterator[tuple[str, bool]]:
        """Alternate text and the template's own special tokens: (text, is it such a token)."""
        start = 0
        for match in self._rendered.finditer(rendered):
            if match[1] is not None:
                yield rendered[start : match.start()], False
                yield match[1], True
                start = match.end()
        yield rendered[start:], False

    def _mark_text(self, text: str) -> str:
        guarded = self._guarded
        text = guarded.token.sub(f"{self.open}\\g<0>{self.close}", text)
        core = text.strip()  # templates trim: the marks at the ends must be inside the white space
        left = text[: len(text) - len(text.lstrip())]
        right = text[len(left) + len(core) :]
        head = self.open if any(core[:n] in guarded.tails for n in range(1, guarded.longest)) else ""
        tail = self.close if any(core[-n:] in guarded.heads for n in range(1, guarded.longest)) else ""
        return left + head + core + tail + right


@dataclass(frozen=True)
class _Guarded:
    """A set of special tokens, prepared for searching."""

    pattern: str
    token: re.Pattern[str]
    heads: frozenset[str]  # their proper beginnings
    tails: frozenset[str]  # and ends
    longest: int


@lru_cache(maxsize=8)
def _guard(special_tokens: tuple[str, ...]) -> _Guarded:
    tokens = sorted(special_tokens, key=len, reverse=True)  # the tokenizer prefers the longest at a place, too
    pattern = "|".join(map(re.escape, tokens)) or "(?!)"
    heads = frozenset(token[:n] for token in tokens for n in range(1, len(token)))
    tails = frozenset(token[n:] for token in tokens for n in range(1, len(token)))
    return _Guarded(pattern, re.compile(pattern), heads, tails, max(map(len, tokens), default=0))

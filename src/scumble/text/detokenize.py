"""Streamed token ids to streamed text, never half a character.

One character may take several tokens, and a token's text may depend on its neighbours (a leading space that is dropped
at the very start, bytes that make a character together). Decoding everything again for each token would cost O(n²);
decoding each token alone would be wrong. Two ways out, chosen by the tokenizer's decoder:

- byte-level BPE: tokens are byte strings, so an incremental UTF-8 decoder is exact;
- everything else (SentencePiece style): decode a window that starts with the ids of the previous increment, and emit
  what goes beyond that increment's own text.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Iterable
from typing import Any, Protocol

from scumble.text.byte_level import unspelled
from scumble.text.tokenizer import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class StreamDetokenizer:
    """Turns ids into text as they come. One object a stream.

    The increments of `feed` and the rest from `finish` together equal `tokenizer.decode(all ids)`, at a cost linear in
    the number of ids. An increment never ends inside a character. Byte-fallback tokens (`<0xE2>`) are shown once a
    token of another kind follows: their decoder judges a run of bytes as a whole.

    Args:
        tokenizer: where the ids come from.
        hidden: ids to leave out; None: the special ones.
    """

    def __init__(self, tokenizer: Tokenizer, *, hidden: Collection[int] | None = None) -> None:
        self._tokenizer = tokenizer
        self._hidden = tokenizer.special_ids if hidden is None else frozenset(hidden)
        spec = tokenizer.decoder_spec
        self._window: _Window = _ByteWindow() if spec and spec["type"] == "ByteLevel" else _TokenWindow(tokenizer, spec)

    def feed(self, ids: Iterable[int]) -> str:
        """Take the next ids; return the text they settle, perhaps none."""
        tokens = ((id, self._tokenizer.token(id)) for id in ids if id not in self._hidden)
        return self._window.feed([(id, token) for id, token in tokens if token is not None])

    def finish(self) -> str:
        """A character ends here, finished or not: the rest, where an unfinished one becomes U+FFFD. More may follow."""
        return self._window.finish()


class _Window(Protocol):
    def feed(self, tokens: list[tuple[int, str]]) -> str: ...
    def finish(self) -> str: ...


class _ByteWindow:
    """Byte-level BPE: every character of a token stands for one byte."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, tokens: list[tuple[int, str]]) -> str:
        return self._utf8.decode(b"".join(unspelled(token) for _, token in tokens))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class _TokenWindow:
    """Any other decoder, seen from outside: text after `before` is what decoding `before + new` adds."""

    def __init__(self, tokenizer: Tokenizer, spec: dict[str, Any] | None) -> None:
        kinds = _decoder_kinds(spec)
        self._tokenizer = tokenizer
        self._has_byte_fallback = "ByteFallback" in kinds
        self._has_partial_text = "ByteLevel" in kinds  # inside a sequence: only U+FFFD tells of unfinished characters
        self._before: list[int] = []  # never empty in text after the start, so that nothing is stripped twice
        self._before_text = ""
        self._ready: list[int] = []  # not yet emitted
        self._bytes: list[int] = []  # an unfinished run of byte tokens, after `ready`

    def feed(self, tokens: list[tuple[int, str]]) -> str:
        for id, token in tokens:
            self._bytes.append(id)
            if not (self._has_byte_fallback and _BYTE_TOKEN.fullmatch(token)):
                self._ready += self._bytes
                self._bytes = []
        return self._emit(final=False)

    def finish(self) -> str:
        self._ready += self._bytes
        self._bytes = []
        return self._emit(final=True)

    def _emit(self, *, final: bool) -> str:
        if not self._ready:
            return ""
        text = self._decode(self._before + self._ready)
        if self._has_partial_text and text.endswith("\ufffd") and not final:
            return ""
        fresh = text[len(self._before_text) :]
        alone = self._decode(self._ready)
        if alone:
            self._before, self._before_text = self._ready, alone
        else:
            self._before, self._before_text = self._before + self._ready, text
        self._ready = []
        return fresh

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special=False)


def _decoder_kinds(spec: dict[str, Any] | None) -> set[str]:
    if spec is None:
        return set()
    return {spec["type"]}.union(*(_decoder_kinds(part) for part in spec.get("decoders", [])))

"""The text of one answer as its ids arrive: thinking, tool calls and the answer proper kept apart, stop strings obeyed.

Control tokens are told by their ids, so an answer that only *spells* `<tool_call|>` holds just these letters.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain
from typing import Literal

from scumble.events import ToolCall
from scumble.text import markers as m
from scumble.text.detokenize import StreamDetokenizer
from scumble.text.stops import StopStrings
from scumble.text.tokenizer import Tokenizer
from scumble.text.tool_calls import QUOTE, Item, MalformedCall, parse_calls, spelled

Place = Literal["answer", "header", "thinking", "call"]

# A channel's name and the line break behind it are markup. Any other name stays visible, as the thinking's first line.
_CHANNELS: dict[str, Place] = {"thought": "thinking", "final": "answer"}
_HEADER = re.compile(r"\s*(thought|final)(?:[ \t\r]*\n|(?=\s)[ \t\r]*|$)")
_BREAKS = (m.RESPONSE_OPEN, m.RESPONSE_CLOSE, m.TURN_OPEN, m.TURN_CLOSE, m.TOOL_OPEN, m.TOOL_CLOSE)
_READ = (m.CHANNEL_OPEN, m.CHANNEL_CLOSE, m.CALL_OPEN, m.CALL_CLOSE, m.QUOTE, *_BREAKS)


@dataclass
class Fresh:
    """What some more ids have settled."""

    text: str = ""
    thinking: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)


class AnswerText:
    """Collects the committed ids of one answer. Without a tokenizer its text stays empty.

    A stop string ends the answer: the text ends before it, the ids behind the token that completed it. Stop strings are
    looked for in the answer proper, not in thinking and calls.

    Args:
        tokenizer: None: ids only.
        stops: stop strings.
        typed: the characters at the end of the prompt that the first token repeats; the text leaves them out.
        prompt: the prompt's ids. Where they end inside a thought channel, or a call, the answer begins inside it.
        ends: ids that end an answer, and others of which no text shall be seen.
        pads: ids that fill what is left of a canvas: no text, and no output where nothing else follows.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        stops: Sequence[str] = (),
        typed: str = "",
        *,
        prompt: Sequence[int] = (),
        ends: Collection[int] = (),
        pads: Collection[int] = (),
    ) -> None:
        self.ids: list[int] = []
        self.text = ""
        self.thinking: str | None = None
        self.thinking_tokens = 0
        self.tool_calls: list[ToolCall] = []
        self.malformed: list[str] = []
        self.stopped = False
        self._prompt, self._ends, self._pads = prompt, frozenset(ends), frozenset(pads)
        self._held_pads: list[int] = []
        self._tokenizer = tokenizer
        self._typed = ""
        self._stops = StopStrings(stops)
        self._fresh = Fresh()
        self._place: Place = "answer"
        self._header = ""
        self._call: list[Item] = []  # of the call that is being written
        self._call_ids: list[int] = []
        self._given = 0  # how many of its items stand in the prompt
        if tokenizer is not None:
            self._hidden = tokenizer.special_ids | self._ends | self._pads
            self._stream = StreamDetokenizer(tokenizer, hidden=self._hidden)
            found = ((tokenizer.token_id(marker), marker) for marker in _READ)
            self._markers = {id: marker for id, marker in found if id is not None}
            self._continue(prompt)
        self._typed = typed

    @property
    def thinking_closed(self) -> bool:
        """False while the answer is inside its thought channel."""
        return self._place not in ("header", "thinking")

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the answer."""
        return self._stops.matched

    def feed(self, ids: Iterable[int]) -> Fresh:
        """Take committed ids, one by one until a stop string is complete; returns what they add."""
        self._fresh = Fresh()
        for token in ids:
            if self.stopped:
                break
            if token in self._pads:
                self._held_pads.append(token)
                continue
            self.ids += [*self._held_pads, token]
            self._held_pads = []
            if self._tokenizer is not None:
                self._take(token)
        return self._fresh

    def finish(self) -> Fresh:
        """The answer is over: release what was held back; returns the last of it. A call that has not come to its end
        is none: it may lack half of a file's name."""
        self._fresh = Fresh()
        if self._tokenizer is not None and not self.stopped:
            self._write(self._stream.finish())
            if self._place == "header":
                if not _HEADER.match(self._header):  # half a name is markup
                    self._header = ""
                self._end_header()
            elif self._place == "call":
                self._keep_as_text()
            if not self.stopped:
                self._say(self._stops.finish())
        return self._fresh

    def _continue(self, prompt: Sequence[int]) -> None:
        """Begin where the prompt ends: inside the channel or the call that it opens last, if nothing closed it."""
        closing = (m.CHANNEL_CLOSE, m.CALL_CLOSE, *_BREAKS)
        for at in range(len(prompt) - 1, -1, -1):
            marker = self._markers.get(prompt[at])
            if marker in closing or prompt[at] in self._ends:
                return
            if marker in (m.CHANNEL_OPEN, m.CALL_OPEN):
                for token in prompt[at:]:
                    self._take(token)
                self._write(self._stream.finish())
                if self.thinking is not None:
                    self.thinking = ""
                self.thinking_tokens = 0
                self.text, self.stopped, self._stops = "", False, StopStrings(self._stops.stops)
                self._given = len(self._call)
                return

    def _take(self, token: int) -> None:
        if self._place == "call":
            self._call_ids.append(token)
        marker = self._markers.get(token)
        if marker is None and token not in self._ends:
            self.thinking_tokens += not self.thinking_closed
            self._write(self._stream.feed([token]))
            return
        self._write(self._stream.finish())
        if self._place == "call":
            if marker == m.QUOTE:
                self._call.append(QUOTE)
                return
            self._end_call()
        if self._place == "header":
            self._end_header()
        if marker == m.CHANNEL_OPEN:
            self._place, self._header = "header", ""
        elif marker == m.CHANNEL_CLOSE:
            self._place = "answer"
        elif marker == m.CALL_OPEN:
            self._place, self._call, self._call_ids, self._given = "call", [], [token], 0

    def _write(self, piece: str) -> None:
        """Put decoded text where it belongs."""
        if self._typed.startswith(piece):
            piece, self._typed = "", self._typed[len(piece) :]
        else:
            piece, self._typed = piece.removeprefix(self._typed), ""
        if not piece:
            return
        if self._place == "call":
            self._call.append(piece)
        elif self._place == "thinking":
            self._think(piece)
        elif self._place == "header":
            self._header += piece
            begun = self._header.lstrip()
            word = begun.rstrip(" \t\r")
            may_go_on = any(name.startswith(word) for name in _CHANNELS) and (word == begun or word in _CHANNELS)
            if not may_go_on:
                self._end_header()
        else:
            self._answer(piece)

    def _end_header(self) -> None:
        """What follows `<|channel>` is known well enough: go where its name says, with what is no name."""
        match = _HEADER.match(self._header)
        self._place = _CHANNELS[match[1]] if match else "thinking"
        rest, self._header = self._header[match.end() if match else 0 :], ""
        if self._place == "thinking":
            self._think(rest)
        else:
            self._answer(rest)

    def _end_call(self) -> None:
        try:
            parsed = parse_calls(self._call)
        except MalformedCall:
            self._keep_as_text()
            return
        self._place = "answer"
        name = blake2b(digest_size=8)
        for token in chain(self._prompt, self.ids):
            name.update(token.to_bytes(4, "little"))
        for number, (function, arguments) in enumerate(parsed):
            suffix = f"_{number}" if number else ""
            call = ToolCall(function, arguments, f"call_{name.hexdigest()}{suffix}")
            self.tool_calls.append(call)
            self._fresh.tool_calls.append(call)

    def _keep_as_text(self) -> None:
        assert self._tokenizer is not None
        self._place = "answer"
        self.malformed.append(self._tokenizer.decode(self._call_ids, skip_special=False))
        self._answer(spelled(self._call[self._given :]))

    def _think(self, piece: str) -> None:
        self.thinking = (self.thinking or "") + piece
        self._fresh.thinking += piece

    def _answer(self, piece: str) -> None:
        if piece and not self.stopped:
            shown, self.stopped = self._stops.feed(piece)
            self._say(shown)

    def _say(self, shown: str) -> None:
        self.text += shown
        self._fresh.text += shown

"""The text of one answer as its ids arrive: whole characters, thinking apart from the answer, stop strings obeyed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scumble.text import CHANNEL_MARKERS, ChannelSplitter, StopStrings, StreamDetokenizer, Tokenizer


class AnswerText:
    """Collects the committed ids of one answer. Without a tokenizer its text stays empty.

    A stop string ends the answer: the text ends before it, the ids behind the token that completed it.
    typed: what the first token begins with but the prompt has already; the answer's text leaves it out.
    """

    def __init__(self, tokenizer: Tokenizer | None, stops: Sequence[str], typed: str = ""):
        self.ids: list[int] = []
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._typed = typed
        self._stops = StopStrings(stops)
        self._thinking = ""
        self._splitter: ChannelSplitter | None = None
        if tokenizer is not None:
            if all(marker in tokenizer.special_tokens for marker in CHANNEL_MARKERS):
                self._splitter = ChannelSplitter()
            self._stream = StreamDetokenizer(tokenizer, keep=CHANNEL_MARKERS)

    @property
    def thinking(self) -> str | None:
        return self._thinking if self._splitter is not None and self._splitter.thought else None

    def feed(self, ids: Iterable[int]) -> str:
        """Take committed ids, one by one until a stop string is complete; returns the new answer text."""
        before = len(self.text)
        for token in ids:
            if self.stopped:
                break
            self.ids.append(token)
            if self._tokenizer is not None:
                self._take(self._stream.feed([token]))
        return self.text[before:]

    def finish(self) -> str:
        """The answer is over: release what was held back; returns the last new text."""
        before = len(self.text)
        if self._tokenizer is not None and not self.stopped:
            self._take(self._stream.finish())
            if self._splitter is not None and not self.stopped:
                self._sort(self._splitter.finish())
            if not self.stopped:
                self.text += self._stops.finish()
        return self.text[before:]

    def _take(self, piece: str) -> None:
        if self._typed.startswith(piece):
            piece, self._typed = "", self._typed[len(piece) :]
        else:
            piece, self._typed = piece.removeprefix(self._typed), ""
        if piece:
            self._sort([("answer", piece)] if self._splitter is None else self._splitter.feed(piece))

    def _sort(self, parts: Sequence[tuple[str, str]]) -> None:
        for channel, text in parts:
            if channel == "thinking":
                self._thinking += text
            elif not self.stopped:
                shown, self.stopped = self._stops.feed(text)
                self.text += shown

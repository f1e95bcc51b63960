"""Stop strings over streamed text.

Text arrives in pieces whose borders mean nothing (tokens, canvases), so a stop string may lie across them. What might
still become a stop string is held back; everything else is passed on at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from scumble.errors import InvalidRequest


class StopStrings:
    """Cuts a text stream before the first stop string. One object a stream.

    The stop string that is *complete* first wins, and the text ends before it; of several that are complete at the same
    character, the longest. So with stops "abcd" and "c" the text "abcd" ends after "ab". How the text was cut into
    pieces makes no difference.

    Args:
        stops: non-empty strings; none at all passes everything through.

    Raises:
        InvalidRequest: `stops` is itself a string, or holds something that is not a non-empty string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str):
            raise InvalidRequest(f"stop strings come as a list; write [{stops!r}]")
        for stop in stops:
            if not isinstance(stop, str) or not stop:
                raise InvalidRequest(f"a stop string must be a non-empty str; got {stop!r}")
        self.stops = tuple(dict.fromkeys(stops))
        self._held = ""
        self.matched: str | None = None  # the stop string that ended the stream

    def feed(self, text: str) -> tuple[str, bool]:
        """Take the next piece; return the text that may be shown now, and whether the stream has ended."""
        if self.matched is not None:
            return "", True
        text = self._held + text
        match = self._first_complete(text)
        if match is not None:
            start, self.matched = match
            self._held = ""
            return text[:start], True
        border = open_suffix(text, self.stops)
        self._held = text[border:]
        return text[:border], False

    def finish(self) -> str:
        """The stream is over: what was held back turned out to be no stop string, and is text."""
        held, self._held = self._held, ""
        return held

    def _first_complete(self, text: str) -> tuple[int, str] | None:
        found = ((text.find(stop), stop) for stop in self.stops)
        ends = [(start + len(stop), start, stop) for start, stop in found if start >= 0]
        return min(ends)[1:] if ends else None


def open_suffix(text: str, needles: Sequence[str]) -> int:
    """Where the longest suffix of `text` that is a proper beginning of a needle starts; `len(text)` if none does."""
    border = len(text)
    for needle in needles:
        at = text.find(needle[0], max(0, len(text) - len(needle) + 1))
        while 0 <= at < border:
            if needle.startswith(text[at:]):
                border = at
            else:
                at = text.find(needle[0], at + 1)
    return border

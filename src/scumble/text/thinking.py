"""Splitting what a model wrote into its thinking and its answer.

A thinking model opens with `<|channel>thought\\n…<channel|>` and then answers. The markers are special tokens, which
decoding leaves out: decode with `keep=CHANNEL_MARKERS` (Tokenizer.decode, StreamDetokenizer) before splitting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from scumble.text.stops import open_suffix

CHANNEL_OPEN = "<|channel>"
CHANNEL_CLOSE = "<channel|>"
CHANNEL_MARKERS = (CHANNEL_OPEN, CHANNEL_CLOSE)

# The channel's name and its newline are markup. Any other name stays visible, as the thinking's first line.
_HEADER = "thought\n"

Channel = Literal["thinking", "answer"]


class ChannelSplitter:
    """Sorts streamed text into channels. One object a stream; the cut into pieces makes no difference.

    Markers and the `thought` header are left out, every other character comes out exactly once and in order. A channel
    that never closes is thinking to its end; a stray `<channel|>` is left out.
    """

    def __init__(self) -> None:
        self.thought = False  # whether a channel was ever opened
        self._channel: Channel = "answer"
        self._in_header = False
        self._held = ""

    def feed(self, piece: str) -> list[tuple[Channel, str]]:
        """Take the next piece; return what it settles as (channel, text), texts non-empty."""
        text, self._held = self._held + piece, ""
        parts: list[tuple[Channel, str]] = []
        while text:
            if self._in_header:
                if len(text) < len(_HEADER) and _HEADER.startswith(text):
                    self._held = text
                    break
                text, self._in_header = text.removeprefix(_HEADER), False
            found = [(text.find(marker), marker) for marker in CHANNEL_MARKERS if marker in text]
            if not found:
                at = open_suffix(text, CHANNEL_MARKERS)
                self._append(parts, text[:at])
                self._held = text[at:]
                break
            at, marker = min(found)
            self._append(parts, text[:at])
            text = text[at + len(marker) :]
            self._in_header = marker == CHANNEL_OPEN
            self._channel = "thinking" if self._in_header else "answer"
            self.thought |= self._in_header
        return parts

    def finish(self) -> list[tuple[Channel, str]]:
        """The stream is over: what looked like the beginning of a marker was text; half a header is markup still."""
        parts: list[tuple[Channel, str]] = []
        if not self._in_header:
            self._append(parts, self._held)
        self._held = ""
        return parts

    def _append(self, parts: list[tuple[Channel, str]], text: str) -> None:
        if not text:
            return
        if parts and parts[-1][0] == self._channel:
            parts[-1] = (self._channel, parts[-1][1] + text)
        else:
            parts.append((self._channel, text))


def split_thinking(text: str) -> tuple[str | None, str]:
    """(thinking, answer) of a whole text. Thinking is None where no channel was opened, "" where an empty one was."""
    splitter = ChannelSplitter()
    parts = splitter.feed(text) + splitter.finish()
    thinking = "".join(piece for channel, piece in parts if channel == "thinking")
    answer = "".join(piece for channel, piece in parts if channel == "answer")
    return (thinking if splitter.thought else None), answer


def split_thinking_ids(ids: Sequence[int], open_id: int, close_id: int) -> tuple[list[int] | None, list[int]]:
    """The same on token ids: proof against markers that were only spelled out in text. The header's ids stay.

    Args:
        ids: generated token ids.
        open_id: the id of `<|channel>`.
        close_id: the id of `<channel|>`.
    """
    thinking: list[int] = []
    answer: list[int] = []
    thought, current = False, answer
    for id in ids:
        if id == open_id:
            thought, current = True, thinking
        elif id == close_id:
            current = answer
        else:
            current.append(id)
    return (thinking if thought else None), answer

"""Where an answer appears: as plain text on stdout, or live on a terminal while its canvas is denoised."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.text import Text

from scumble.cli.canvas_view import CanvasView, View
from scumble.cli.layout import PALETTE, PLAIN_PALETTE, Piece, Row, rows_of, text_of
from scumble.cli.region import Region
from scumble.cli.terminal import same_screen, stdout_is_terminal, visible
from scumble.events import Draft

PROMPT_ROWS = 8  # how much of a long prompt is shown above the canvas
BAR = 24  # cells of the settled share at most


class Screen(Protocol):
    """Takes the events of one answer. `close` leaves the committed text, whole, on stdout."""

    def draft(self, draft: Draft) -> None: ...
    def committed(self, text: str, tokens: int) -> None: ...
    def close(self) -> None: ...


class SilentScreen:
    """For --json: the answer is printed at the end, by others."""

    def draft(self, draft: Draft) -> None: ...
    def committed(self, text: str, tokens: int) -> None: ...
    def close(self) -> None: ...


class PlainScreen:
    """Text on stdout as it is committed. A file gets it byte for byte, a terminal without control characters."""

    def __init__(self) -> None:
        self._safe = stdout_is_terminal()
        self._last = ""

    def draft(self, draft: Draft) -> None: ...

    def committed(self, text: str, tokens: int) -> None:
        if text:
            self._last = text[-1]
            sys.stdout.write(visible(text) if self._safe else text)
            sys.stdout.flush()

    def close(self) -> None:
        """A text file ends with a newline; so does the answer, where its own text lacks one."""
        if self._last not in ("", "\n"):
            self.committed("\n", 0)


class EchoScreen:
    """Another screen, with a text in front of the answer and one behind it, so that all three come out as one."""

    def __init__(self, screen: Screen, before: str, after: str) -> None:
        self._screen, self._after = screen, after
        screen.committed(before, 0)

    def draft(self, draft: Draft) -> None:
        self._screen.draft(draft)

    def committed(self, text: str, tokens: int) -> None:
        self._screen.committed(text, tokens)

    def close(self) -> None:
        if self._after:
            self._screen.committed(self._after, 0)
        self._screen.close()


@dataclass(frozen=True)
class Progress:
    """What the footer tells. passes_at_most: of one canvas; tokens: committed so far, of at most `room`; candidates: of
    a canvas, of which the first is drawn."""

    view: View | None
    passes_at_most: int
    tokens: int
    room: int
    seconds: float
    candidates: int = 1


class LiveScreen:
    """Draws the canvas on stderr. Committed lines move to stdout, above the canvas, and are never drawn again.

    passes_at_most: of a canvas.
    prompt: shown dimmed before the answer; "" for none. A last line that is not yet complete stays in the drawing,
    so that the answer goes on where the prompt or the committed text ends.
    """

    def __init__(
        self,
        console: Console,
        view: CanvasView,
        prompt: str,
        passes_at_most: int,
        room: int,
        candidates: int = 1,
    ) -> None:
        self._console = console
        self._region = Region(console)
        self._view = view
        self._passes_at_most = passes_at_most
        self._room = room
        self._candidates = candidates
        self._shared = same_screen()
        self._out = PlainScreen()
        self._prompt = visible(prompt)
        self._pending = ""  # committed text that is only drawn yet (shared), or all that should be in view (not shared)
        self._tokens = 0
        self._started = time.perf_counter()
        self._floor, self._first = 0, 0  # rows of this canvas so far; the first row in view
        self._palette = PLAIN_PALETTE if console.no_color else PALETTE
        self._canvas, self._length = -1, 0

    def draft(self, draft: Draft) -> None:
        if draft.canvas != self._canvas:
            self._canvas, self._floor, self._first = draft.canvas, 0, 0
        self._length = len(draft.token_ids)
        self._draw(self._view.take(draft))

    def committed(self, text: str, tokens: int) -> None:
        self._view.commit(tokens)
        self._tokens += tokens
        if not self._shared:
            self._out.committed(text, tokens)
        self._pending += visible(text)
        self._floor, self._first = 0, 0
        if self._shared and "\n" in self._pending:
            whole, _, self._pending = self._pending.rpartition("\n")
            self._release(whole + "\n")
        self._draw(None)

    def close(self) -> None:
        self._region.erase()
        if self._shared and (self._prompt or self._pending):
            self._release(self._pending or "\n")  # a prompt without an answer still ends its line
        self._out.close()

    def _release(self, text: str) -> None:
        """Put text on stdout for good, where the drawing began."""
        self._region.erase()
        if self._prompt:
            shown = rows_of([Piece(self._prompt, "prompt")], self._console.width)[-PROMPT_ROWS:]
            self._console.print(Text("\n").join(text_of(row, self._palette) for row in shown), end="", soft_wrap=True)
            self._console.file.flush()
            self._prompt = ""
        self._out.committed(text, 0)

    def _draw(self, view: View | None) -> None:
        width = max(self._console.width, 20)
        height = max(self._console.height - 1, 4)
        before = rows_of([Piece(self._prompt, "prompt")], width)[-PROMPT_ROWS:]
        start = [piece for row in _with_breaks(before) for piece in row]
        pieces = [*start, Piece(self._pending, "committed"), *(view.pieces if view is not None else ())]
        rows = rows_of(pieces, width)
        self._floor = max(self._floor, len(rows))
        rows += [[] for _ in range(self._floor - len(rows))]
        window, below = self._window(rows, height - 2)
        seconds = time.perf_counter() - self._started
        progress = Progress(view, self._passes_at_most, self._tokens, self._room, seconds, self._candidates)
        self._region.draw([*(text_of(row, self._palette) for row in window), Text(), footer(progress, below, width)])

    def _window(self, rows: list[Row], room: int) -> tuple[list[Row], int]:
        """The rows in view, and how many lie below: follows the first row that still moves, and only downwards."""
        if len(rows) <= room:
            return rows, 0
        moving = next((i for i, row in enumerate(rows) if any(p.look in _MOVING for p in row)), len(rows))
        self._first = min(max(self._first, moving - room // 2), len(rows) - room)
        return rows[self._first : self._first + room], len(rows) - room - self._first


_MOVING = ("fresh", "leaning", "noise")


def _with_breaks(rows: list[Row]) -> list[Row]:
    return [[*row, Piece("\n", "prompt")] for row in rows[:-1]] + rows[-1:]


def footer(progress: Progress, below: int, width: int) -> Text:
    """One quiet line under the canvas: which canvas and pass, how much has settled, how fast."""
    view = progress.view
    parts: list[Text] = []
    if view is not None:
        of = f" (1 of {progress.candidates})" if progress.candidates > 1 else ""
        parts.append(Text(f"canvas {view.canvas + 1}{of}"))
        parts.append(Text(f"pass {view.pass_index + 1:>2}/{progress.passes_at_most}"))
        parts.append(_bar(view.settled, min(BAR, width - 56 - len(of))).append(f"{view.settled:4.0%} settled"))
        done = progress.tokens + view.settled_tokens
    else:
        parts.append(Text(f"{progress.tokens}/{progress.room} tokens"))
        done = progress.tokens
    if progress.seconds > 0.2:
        parts.append(Text(f"{done / progress.seconds:.0f} tok/s"))
    if below:
        parts.append(Text(f"{below} more rows ↓"))
    while True:  # half a number would be another number, so a part that does not fit goes as a whole
        line = Text("  ", style="dim") + Text(" · ").join(parts)
        if line.cell_len <= width - 3 or len(parts) == 1:
            line.truncate(width - 3)
            return line
        parts.pop()


def _bar(share: float, cells: int) -> Text:
    """The settled share as a line; nothing where the screen is too narrow for one."""
    if cells < 6:
        return Text()
    full = round(share * cells)
    return Text.assemble(("━" * full, "not dim color(173)"), "─" * (cells - full), " ")

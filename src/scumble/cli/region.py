"""Rows at the bottom of a terminal that are drawn over and over. What stands above them is never touched."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
CLEAR_ROW, CLEAR_BELOW = "\x1b[2K", "\x1b[J"


class Region:
    """A frame is one write, row over row, so nothing flickers. Rows must fit the width and the screen's height."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._drawn: list[int] = []  # cells of each row on the screen

    def draw(self, rows: Sequence[Text]) -> None:
        body = "\r\n".join(CLEAR_ROW + self._ansi(row) for row in rows)
        self._write(HIDE_CURSOR + self._home() + body + CLEAR_BELOW)
        self._drawn = [row.cell_len for row in rows]

    def erase(self) -> None:
        """Take the rows away and leave the cursor where the first one began."""
        if self._drawn:
            self._write(self._home() + CLEAR_BELOW + SHOW_CURSOR)
            self._drawn = []

    def _home(self) -> str:
        """Back to the first row. A terminal made narrower meanwhile has broken the rows anew."""
        if not self._drawn:
            return "\r"
        width = max(self._console.width, 1)
        up = sum(max(1, -(-cells // width)) for cells in self._drawn) - 1
        return "\r" + (f"\x1b[{up}A" if up else "")

    def _ansi(self, row: Text) -> str:
        with self._console.capture() as captured:
            self._console.print(row, end="", soft_wrap=True)
        return captured.get()

    def _write(self, data: str) -> None:
        self._console.file.write(data)
        self._console.file.flush()

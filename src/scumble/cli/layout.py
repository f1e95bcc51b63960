"""Pieces of text with a look, and how they fill the rows of a screen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from rich.cells import get_character_cell_size
from rich.text import Text

Look = Literal["prompt", "committed", "settled", "fresh", "leaning", "noise", "end"]

TAB = 8

# Plain is what will stay. Colours of the 256-colour table that read on dark and on light backgrounds.
PALETTE: dict[str, str] = {
    "prompt": "dim",
    "committed": "",
    "settled": "",
    "fresh": "color(173)",
    "leaning": "color(245)",
    "noise": "dim color(242)",
    "end": "dim color(242)",
}
PLAIN_PALETTE = {**PALETTE, "fresh": "bold", "leaning": "dim", "noise": "dim italic", "end": "dim"}  # without colours


class Piece(NamedTuple):
    text: str
    look: Look


Row = list[Piece]


def rows_of(pieces: Iterable[Piece], width: int) -> list[Row]:
    """Break pieces into rows of at most `width` cells, at the character, as a terminal does.

    Wide characters take two cells, combining ones none; tabs are filled up with spaces. The text must hold no control
    characters but newline and tab (see terminal.visible).
    """
    rows: list[Row] = [[]]
    column = 0
    for text, look in pieces:
        start = 0  # where the part of `text` begins that is not yet in a row
        expanded = _expand_tabs(text, column) if "\t" in text else text
        for at, character in enumerate(expanded):
            if character == "\n":
                _add(rows[-1], expanded[start:at], look)
                rows.append([])
                column, start = 0, at + 1
                continue
            size = get_character_cell_size(character)
            if column + size > width and column:
                _add(rows[-1], expanded[start:at], look)
                rows.append([])
                column, start = 0, at
            column += size
        _add(rows[-1], expanded[start:], look)
    return rows


def _add(row: Row, text: str, look: Look) -> None:
    if not text:
        return
    if row and row[-1].look == look:
        row[-1] = Piece(row[-1].text + text, look)
    else:
        row.append(Piece(text, look))


def _expand_tabs(text: str, column: int) -> str:
    out = []
    for character in text:
        if character == "\t":
            fill = TAB - column % TAB
            out.append(" " * fill)
            column += fill
        else:
            out.append(character)
            column = 0 if character == "\n" else column + get_character_cell_size(character)
    return "".join(out)


def text_of(row: Row, palette: dict[str, str]) -> Text:
    """A row as rich text."""
    return Text.assemble(*((piece.text, palette[piece.look]) for piece in row), no_wrap=True)

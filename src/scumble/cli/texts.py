"""Texts in and out of commands that work on a text that is there."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from scumble.cli import options as o
from scumble.cli.terminal import stdout_is_terminal, visible
from scumble.errors import InvalidRequest
from scumble.reading import read_text

File = Annotated[str, typer.Argument(help="A file; - or nothing reads stdin.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=o.SCREEN)]


def text_of(file: str) -> str:
    try:
        return sys.stdin.buffer.read().decode() if file == "-" else read_text(file)
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{'stdin' if file == '-' else file} cannot be read: {error}") from None


def print_text(text: str) -> None:
    sys.stdout.write(visible(text) if stdout_is_terminal() else text)
    sys.stdout.flush()

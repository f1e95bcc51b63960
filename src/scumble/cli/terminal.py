"""What the commands share about terminals: consoles, control characters, and which stream is a screen."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator

from rich.console import Console

# C0 except \n and \t, DEL, C1, and the marks that reorder text. A model's output may hold any of them; a terminal
# would obey.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """The text with control characters replaced by pictures of them (ESC by ␛), so that a terminal obeys none."""
    return _CONTROLS.sub(_picture, text)


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else "\ufffd"


def error_console() -> Console:
    """A console on stderr that takes text as it is: no markup, no highlighting."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def report_console() -> Console:
    """A console on stdout for tables; where stdout is no terminal, wide enough for all of them."""
    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=140)


def can_draw(console: Console) -> bool:
    """Whether a console can move its cursor, so that something may be drawn over and over."""
    return console.is_terminal and not console.is_dumb_terminal


def stdout_is_terminal() -> bool:
    return sys.stdout.isatty()


def same_screen() -> bool:
    """Whether stdout and stderr are one terminal: text written to one appears between lines of the other."""
    try:
        out, err = os.fstat(sys.stdout.fileno()), os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return sys.stdout.isatty() and sys.stderr.isatty() and (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino)


@contextlib.contextmanager
def quiet_keyboard(wanted: bool = True) -> Iterator[None]:
    """Do not echo keys meanwhile, which would smear a drawing. Ctrl-C still works; what is typed is read afterwards."""
    if sys.platform == "win32" or not wanted or not sys.stdin.isatty():
        yield
        return
    import termios

    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    quiet = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(number, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits for the end of the block: for imports, which other libraries' modules do not survive half done."""
    asked: list[int] = []
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or not in_main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if asked:
        raise KeyboardInterrupt


def in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def spinner(console: Console, what: str) -> Iterator[None]:
    """Something that turns while a person waits; nothing where nobody watches."""
    if not can_draw(console):
        yield
        return
    with quiet_keyboard(), console.status(f"[dim]{what}[/dim]", spinner="dots", spinner_style="dim"):
        yield

"""Where a prompt comes from: the argument, a file, or stdin."""

from __future__ import annotations

import sys
from pathlib import Path

from scumble.errors import InvalidRequest


def read_prompt(argument: str | None, file: Path | None) -> str:
    """The prompt as text. One newline at the end of a file or of stdin is taken as the end of its last line.

    Raises InvalidRequest where there is none, or two, or where bytes are not UTF-8.
    """
    if argument is not None and file is not None:
        raise InvalidRequest("give a prompt or --file, not both")
    if file is not None:
        return _without_last_newline(decode(_read_file(file), str(file)))
    if argument is not None and argument != "-":
        return argument
    if argument is None and sys.stdin.isatty():
        raise InvalidRequest("no prompt; give one as an argument, with --file, or on stdin")
    return _without_last_newline(decode(sys.stdin.buffer.read(), "stdin"))


def decode(data: bytes, source: str) -> str:
    """Bytes to text, strictly."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{source} is not valid UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}; convert it first"
        ) from None


def _read_file(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{file}: cannot be read: {error.strerror or error}") from None


def _without_last_newline(text: str) -> str:
    return text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")

"""Files that somebody else wrote, read with care.

Only regular files are opened (a named pipe would wait for ever, a device never ends), no more is read than a limit
allows, and JSON may be only so deep. Callers turn OSError and ValueError into an error of their own, with the path.
"""

from __future__ import annotations

import json
import os
import stat
from typing import Any, BinaryIO

MOST_JSON = 64 * 2**20  # bytes; the index of a checkpoint of 50,000 tensors has 5 MB
MOST_TOKENIZER = 512 * 2**20  # bytes; a vocabulary of 262,144 tokens with its merges has 33 MB
DEEPEST = 100  # levels of objects and lists; no file of this kind has more than ten

KINDS = (
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether a folder has an entry of this name, a link that leads nowhere included: that is an error to report."""
    return os.path.lexists(path)


def check_regular(path: str | os.PathLike[str]) -> int:
    """The size of a regular file in bytes; symbolic links are followed. Raises OSError for anything else."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            raise OSError(f"is a link to {os.readlink(path)}, which is not there") from None
        raise
    for matches, name in KINDS:
        if matches(found.st_mode):
            raise OSError(f"is {name}, not a regular file")
    return found.st_size


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file, open for reading. Raises OSError for anything else, without waiting."""
    check_regular(path)
    # Not blocking: should the file have become a pipe since, opening it does not wait either.
    return os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")


def read_bytes(path: str | os.PathLike[str], most: int) -> bytes:
    """A whole regular file of at most so many bytes. Raises OSError for a larger one, unread."""
    size = check_regular(path)
    if size > most:
        raise OSError(f"has {size:,} bytes; a file of this kind may have {most:,} at most")
    with open_regular(path) as stream:
        return stream.read(most)


def read_text(path: str | os.PathLike[str], most: int = MOST_JSON) -> str:
    """A whole text file. Raises OSError, or UnicodeDecodeError (a ValueError) where it is not UTF-8."""
    return read_bytes(path, most).decode("utf-8")


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text holds. Raises ValueError, also where it is nested deeper than DEEPEST."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise too_deep() from None
    check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Raises ValueError for dicts and lists nested deeper than DEEPEST: printing or copying them would fail later."""
    level = [value]
    for _ in range(DEEPEST + 1):
        children = (
            item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)
        )
        level = [child for inside in children for child in inside if isinstance(child, dict | list)]
        if not level:
            return
    raise too_deep()


def too_deep() -> ValueError:
    return ValueError(f"nested too deep: more than {DEEPEST} levels")


def read_json_file(path: str | os.PathLike[str], most: int = MOST_JSON) -> Any:
    """The value in a JSON file, of any type. Raises OSError or ValueError."""
    return parse_json(read_text(path, most))

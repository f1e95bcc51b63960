"""One training run a folder: a second one would write over the first one's state, step by step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scumble.errors import DataError

NAME = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises DataError where another process holds it.

    The system lets go of it when the process ends, however that comes about; the file stays. Where a file system or
    a system has no locks (some network drives, Windows), nothing is held.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (folder / NAME).open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            owner = stream.read(100).strip() or "unknown"
            raise DataError(
                f"run.out: another run trains in {folder} (process {owner}); stop it, or name another folder"
            ) from None
        except OSError:  # this file system has no locks
            pass
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield

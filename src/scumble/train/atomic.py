"""Files that are either complete or absent: written beside their place, flushed, then renamed into it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from scumble.errors import DataError


@contextmanager
def atomic_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file that becomes `path` when the block ends without an error.

    A full disk is raised as DataError; whatever was at `path` before stays until the rename.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
        with open(temporary, mode, encoding=encoding, newline=newline) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise as_data_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as one line of JSON, atomically."""
    with atomic_file(path, "w") as f:
        json.dump(value, f, ensure_ascii=False)
        f.write("\n")


def as_data_error(error: OSError, path: Path) -> Exception:
    """Turn a full disk or a refused write into a sentence that says what to do; other errors stay as they are."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(f"the disk that holds {path.parent} is full; free some space and run the same command again")
    if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT):
        return DataError(f"cannot write {path}: {error.strerror}; make it writable or choose another folder")
    return error

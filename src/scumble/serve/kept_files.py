"""Files that clients upload and that batches write: a folder with the content and a small description of each."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from scumble.serve.errors import ApiError

FILE_ID = re.compile(r"file-[0-9a-f]{32}")
KEPT_DAYS = 30  # of files and of batches; what is older goes
DAY = 86400


@dataclass(frozen=True)
class KeptFile:
    """owner: the name of the key that it belongs to; nobody else sees it. Times in seconds since 1970."""

    id: str
    owner: str
    filename: str
    purpose: str
    bytes: int
    created_at: int

    def public(self) -> dict[str, Any]:
        shown = {name: value for name, value in asdict(self).items() if name != "owner"}
        return {"object": "file", **shown, "expires_at": self.created_at + KEPT_DAYS * DAY, "status": "processed",
                "status_details": None}  # fmt: skip


class FileStore:
    """most_bytes: of one file; most_in_all: of all files together. No name that a client gives becomes a path."""

    def __init__(self, folder: Path, most_bytes: int, most_in_all: int) -> None:
        self.folder = folder
        self.most_bytes = most_bytes
        self.most_in_all = most_in_all
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in folder.glob("*.part"):  # of an upload that was cut off
            left.unlink(missing_ok=True)

    def new_id(self) -> str:
        return f"file-{secrets.token_hex(16)}"

    def path(self, file_id: str) -> Path:
        """Where the content is."""
        assert FILE_ID.fullmatch(file_id)
        return self.folder / file_id

    def upload(self, source: IO[bytes], owner: str, filename: str, purpose: str) -> KeptFile:
        """Store a file: all of it, or nothing. Raises 413 where there is no room."""
        self.sweep()
        size = source.seek(0, os.SEEK_END)
        source.seek(0)
        used = sum(one.stat().st_size for one in self.folder.iterdir() if one.suffix != ".part")
        if size > self.most_bytes:
            raise ApiError(
                413, f"the file has {size} bytes, at most {self.most_bytes} are allowed", code="file_too_large"
            )
        if used + size > self.most_in_all:
            raise ApiError(
                413, "there is no room for this file; delete others first", code="storage_full", param="file"
            )
        file_id = self.new_id()
        part = self.folder / f"{file_id}.part"
        try:
            with part.open("xb") as target:
                os.chmod(part, 0o600)
                shutil.copyfileobj(source, target, 2**20)
                target.flush()
                os.fsync(target.fileno())
            part.rename(self.path(file_id))
            return self.describe(file_id, owner, filename, purpose)
        except OSError:
            part.unlink(missing_ok=True)
            self.delete(file_id)
            raise ApiError(507, "the file could not be stored; the server's disk may be full", code="disk") from None

    def describe(self, file_id: str, owner: str, filename: str, purpose: str) -> KeptFile:
        """Make a content that is there a file that its owner sees."""
        size = self.path(file_id).stat().st_size
        kept = KeptFile(file_id, owner, filename, purpose, size, int(time.time()))
        write_json(self.folder / f"{file_id}.json", asdict(kept))
        return kept

    def get(self, file_id: str, owner: str) -> KeptFile:
        """Raises 404 for a file that is not there, or is somebody else's."""
        if FILE_ID.fullmatch(file_id):
            with suppress(FileNotFoundError):
                kept = KeptFile(**json.loads((self.folder / f"{file_id}.json").read_bytes()))
                if kept.owner == owner:
                    return kept
        raise ApiError(404, "there is no such file", code="file_not_found", param="file_id")

    def all(self, owner: str) -> list[KeptFile]:
        """The latest first."""
        kept = [KeptFile(**json.loads(path.read_bytes())) for path in self.folder.glob("file-*.json")]
        return sorted(
            (one for one in kept if one.owner == owner), key=lambda one: (one.created_at, one.id), reverse=True
        )

    def delete(self, file_id: str) -> None:
        (self.folder / f"{file_id}.json").unlink(missing_ok=True)
        self.path(file_id).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Delete what is older than KEPT_DAYS."""
        oldest = time.time() - KEPT_DAYS * DAY
        for path in self.folder.glob("file-*"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a small file: afterwards the old one is there or the new one, whole."""
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        os.chmod(part, 0o600)
        file.write(json.dumps(value, ensure_ascii=False).encode())
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)

"""The audit log: who asked for what, when, with which outcome; and a proof that nobody has changed it since.

One JSON object a line. Each holds the hash of the line before it (`prev`) and ends with its own (`hash`, SHA-256 of the
line without it). Now and then a line is a checkpoint: its signature (Ed25519) vouches for all lines before it. What is
deleted after its time leaves a signed tombstone, which says what was there and carries the chain on.

    {"seq":41,"time":"…","kind":"begin","prev":"…","request":"req_…","key":"ci","route":"/v1/messages",…,"hash":"…"}

Texts are kept only where the operator asks for it, in a file of their own (texts.jsonl); the chain holds a digest of
each, salted, so that a deleted text cannot be guessed from it.

Several processes may append: each takes the lock for one line, and reads the tail anew where somebody else wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from scumble.serve.chain import (
    LOG,
    START,
    TEXTS,
    AuditError,
    append_line,
    canonical,
    end_of_last_whole_line,
    last_line,
    locked,
    make_line,
    now,
    sign,
    signing_key,
)

CHECKPOINT_EVERY = 256  # lines
Redact = Callable[[str], str]


class AuditLog:
    """Appends to a folder's log. redact: applied to every text before it is stored."""

    def __init__(self, folder: Path, keep_texts: bool = False, redact: Redact | None = None) -> None:
        self.folder = folder
        self.keep_texts = keep_texts
        self.redact = redact
        self._file = -1
        self._size = -1  # of the file after our last line; another size: somebody else wrote
        self._seq, self._head = 0, START
        self._since_checkpoint = 0
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with locked(folder):  # of two processes that start together one makes the key
                self._signer = signing_key(folder)
                self._mend_tail()
        except OSError as error:
            raise AuditError(f"the audit log in {folder} cannot be opened: {error.strerror}; see --state") from None

    @property
    def seq(self) -> int:
        """The number of the last line."""
        return self._seq

    @property
    def head(self) -> str:
        """The hash of the last line; whoever keeps it elsewhere can prove that the log was not cut short."""
        return self._head

    def append(self, kind: str, **fields: Any) -> str:
        """Write one line -> its hash. Either the whole line is there afterwards, or nothing of it and an AuditError."""
        with locked(self.folder):
            self._catch_up()
            head = self._write(kind, fields)
            self._since_checkpoint += 1
            if self._since_checkpoint >= CHECKPOINT_EVERY:
                self._checkpoint()
            return head

    def checkpoint(self) -> str:
        """Sign everything so far -> the signed line's hash."""
        with locked(self.folder):
            self._catch_up()
            self._checkpoint()
            return self._head

    def text(self, request: str, prompts: Any, answers: Any) -> str | None:
        """Store a request's texts, where the operator keeps them -> their salted digest for the chain."""
        if not self.keep_texts:
            return None
        nonce = secrets.token_hex(16)
        body = {"prompts": self._redacted(prompts), "answers": self._redacted(answers)}
        line = {"request": request, "time": now(), "nonce": nonce, **body}
        with locked(self.folder):
            append_line(self.folder / TEXTS, canonical(line) + b"\n")
        return text_digest(nonce, body)

    def _redacted(self, value: Any) -> Any:
        if isinstance(value, str) and self.redact is not None:
            try:
                return str(self.redact(value))
            except Exception:  # somebody else's code; what it failed at must not be stored as it is
                return "[redaction failed]"
        if isinstance(value, list):
            return [self._redacted(item) for item in value]
        if isinstance(value, dict):
            return {name: self._redacted(item) for name, item in value.items()}
        return value

    # --- writing --------------------------------------------------------------------------------------------------

    def _write(self, kind: str, fields: dict[str, Any]) -> str:
        line, head = make_line({"seq": self._seq + 1, "time": now(), "kind": kind, "prev": self._head, **fields})
        try:
            done = os.write(self._file, line)
            if done < len(line):
                raise OSError("short write")
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise AuditError(f"the audit log cannot be written: {error.strerror or error}") from None
        self._seq, self._head, self._size = self._seq + 1, head, self._size + len(line)
        return head

    def _checkpoint(self) -> None:
        self._write("checkpoint", {"signature": sign(self._signer, self._head), "signs": self._head})
        self._since_checkpoint = 0
        with suppress(OSError):
            os.fsync(self._file)

    def _catch_up(self) -> None:
        """Open the log anew where it was replaced (pruned), and read its end where somebody else wrote."""
        path = self.folder / LOG
        try:
            state = path.stat()
            if self._file < 0 or os.fstat(self._file).st_ino != state.st_ino:
                self._reopen()
            elif state.st_size != self._size:
                self._read_end(path)
        except FileNotFoundError:
            raise AuditError("the audit log has been removed while the server was running") from None

    def _reopen(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        path = self.folder / LOG
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._read_end(path)

    def _read_end(self, path: Path) -> None:
        self._seq, self._head = 0, START
        with path.open("rb") as file:
            self._size = file.seek(0, os.SEEK_END)
            last = last_line(file, self._size)
        if last:
            record = json.loads(last)
            if record["kind"] == "tombstone":
                self._seq, self._head = record["last_seq"], record["last_hash"]
            else:
                self._seq, self._head = record["seq"], record["hash"]

    def _mend_tail(self) -> None:
        """A process that was killed may leave half a line: cut it off, and say so in the log."""
        path = self.folder / LOG
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            whole = end_of_last_whole_line(file, size)
        if whole < size:
            os.ftruncate(self._file, whole)
        self._read_end(path)
        if whole < size:
            self._write("mended", {"bytes_cut": size - whole})

    def close(self) -> None:
        """Sign the end and let go."""
        if self._file >= 0:
            with suppress(AuditError):
                self.checkpoint()
            os.close(self._file)
            self._file = -1


def text_digest(nonce: str, body: dict[str, Any]) -> str:
    """What the chain keeps of a text: SHA-256 of the salt and the texts."""
    return hashlib.sha256(nonce.encode() + canonical(body)).hexdigest()

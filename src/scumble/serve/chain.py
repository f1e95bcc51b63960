"""Lines that prove their order, signatures over them, and the files that they live in. See audit.py."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from scumble.errors import ScumbleError

LOG, TEXTS, LOCK = "audit.jsonl", "texts.jsonl", "audit.lock"
PRIVATE_KEY, PUBLIC_KEY = "audit-key.pem", "audit-key.pub"
START = "0" * 64  # what stands before the first line


class AuditError(ScumbleError):
    """The audit log cannot be written, or is not what it was."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder's lock, for as long as one line takes (or a rewrite)."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_public_key(path: Path) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise AuditError(f"the public key {path} cannot be read: {error}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise AuditError(f"{path} is no Ed25519 key")
    return key


def now() -> str:
    return stamp(datetime.now(UTC))


def stamp(time: datetime) -> str:
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")


def canonical(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def make_line(record: dict[str, Any]) -> tuple[bytes, str]:
    """The record's line and its hash: of the record's JSON, to which the hash is then added as the last name."""
    body = canonical(record)
    digest = hashlib.sha256(body).hexdigest()
    return body[:-1] + b',"hash":"' + digest.encode() + b'"}\n', digest


_TAIL = len(',"hash":""}\n') + 64


def checked(raw: bytes) -> dict[str, Any] | None:
    """A line's record, if its hash is right."""
    body = raw[:-_TAIL] + b"}"
    try:
        record = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(record, dict) or record.get("hash") != hashlib.sha256(body).hexdigest():
        return None
    return record


def lines_of(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError:
        raise AuditError(f"there is no audit log at {path}") from None


def last_line(file: Any, size: int) -> bytes:
    step = 65536
    while size and step:
        file.seek(max(0, size - step))
        lines = file.read(step).splitlines()
        if len(lines) > 1 or step >= size:
            return lines[-1] if lines else b""
        step *= 4
    return b""


def end_of_last_whole_line(file: Any, size: int) -> int:
    at = size
    while at > 0:
        start = max(0, at - 65536)
        file.seek(start)
        found = file.read(at - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        at = start
    return 0


def sign(key: Ed25519PrivateKey, what: str) -> str:
    return base64.b64encode(key.sign(what.encode())).decode()


def is_signed(key: Ed25519PublicKey, what: str, signature: str) -> bool:
    try:
        key.verify(base64.b64decode(signature), what.encode())
        return True
    except (InvalidSignature, ValueError):
        return False


def signing_key(folder: Path) -> Ed25519PrivateKey:
    """The folder's key, made at first use."""
    path = folder / PRIVATE_KEY
    if path.exists():
        key = load_pem_private_key(path.read_bytes(), None)
        if not isinstance(key, Ed25519PrivateKey):
            raise AuditError(f"{path} is no Ed25519 key")
        return key
    key = Ed25519PrivateKey.generate()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / PUBLIC_KEY).write_bytes(public)
    return key


def append_line(path: Path, line: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        try:
            if os.write(descriptor, line) < len(line):
                raise OSError("short write")
        except OSError as error:
            os.ftruncate(descriptor, size)
            raise AuditError(f"texts cannot be stored: {error.strerror or error}") from None
    finally:
        os.close(descriptor)

"""Keys: random, named, scoped, expiring, revocable. Only their SHA-256 is stored.

A key has 256 random bits, so a plain hash is as good as a slow one: there is nothing to guess. Whoever asks with a key
is compared with every key, in constant time; how long it takes says nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select, update
from sqlalchemy.exc import IntegrityError

from scumble.errors import InvalidRequest, shown
from scumble.serve.store import key_table

SCOPES = ("generate", "metrics", "admin")
PREFIX = "sk-scumble-"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")
SHORTEST = 32  # characters of a key that an operator brings along
REFRESH_SECONDS = 2.0  # so soon a key that was revoked elsewhere is refused


@dataclass(frozen=True)
class Key:
    """What is known of a key. Times in seconds since 1970; None: never, or no limit."""

    name: str
    digest: str
    scopes: tuple[str, ...]
    created: float
    expires: float | None = None
    revoked: float | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def is_valid(self, now: float) -> bool:
        return self.revoked is None and (self.expires is None or now < self.expires)

    def public(self) -> dict[str, Any]:
        """For listings: everything but the digest."""
        now = time.time()
        state = "revoked" if self.revoked is not None else "valid" if self.is_valid(now) else "expired"
        return {
            "name": self.name,
            "scopes": list(self.scopes),
            "state": state,
            "created": self.created,
            "expires": self.expires,
            "requests_per_minute": self.requests_per_minute,
            "tokens_per_minute": self.tokens_per_minute,
        }


OPEN = Key("", "", SCOPES, 0.0)  # whoever asks a server that has no keys


class LastAdminError(InvalidRequest):
    """The only key that may manage keys would be gone."""


class Keys:
    """The keys of a store, and those of a file that the operator keeps."""

    def __init__(self, engine: Engine, fixed: Sequence[Key] = ()) -> None:
        self._engine = engine
        self._fixed = tuple(fixed)
        self._cached: list[Key] = []
        self._read_at = float("-inf")

    def all(self) -> list[Key]:
        """Every key, also revoked and expired ones, by name."""
        with self._engine.connect() as connection:
            rows = connection.execute(select(key_table).order_by(key_table.c.name)).mappings().all()
        self._cached = [Key(**{**row, "scopes": tuple(row["scopes"].split())}) for row in rows]
        self._read_at = time.monotonic()
        return [*self._fixed, *self._cached]

    def known(self) -> list[Key]:
        """As `all`, at most REFRESH_SECONDS old."""
        if not self.is_fresh:
            return self.all()
        return [*self._fixed, *self._cached]

    @property
    def is_fresh(self) -> bool:
        return time.monotonic() - self._read_at <= REFRESH_SECONDS

    def find(self, secret: str) -> Key | None:
        """The valid key that this is, or None."""
        digest, found = digest_of(secret), None
        for key in self.known():
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found if found is not None and found.is_valid(time.time()) else None

    def named(self, name: str) -> Key | None:
        """The valid key of this name, or None."""
        found = next((key for key in self.known() if key.name == name), None)
        return found if found is not None and found.is_valid(time.time()) else None

    def create(
        self,
        name: str,
        scopes: Sequence[str],
        expires_days: float | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
    ) -> str:
        """A new key; the returned secret is shown once and stored nowhere. Raises InvalidRequest."""
        if not NAME.fullmatch(name):
            raise InvalidRequest(f"a key's name must be 1 … 128 letters, digits or ._@-, found {shown(name)}")
        wrong = [scope for scope in scopes if scope not in SCOPES]
        if wrong or not scopes:
            raise InvalidRequest(f"scopes must be some of {', '.join(SCOPES)}, found {shown(list(scopes))}")
        if expires_days is not None and not 0 < expires_days <= 36_500:
            raise InvalidRequest(f"a key may expire after 0 … 36500 days, found {shown(expires_days)}")
        for what, value in (("requests", requests_per_minute), ("tokens", tokens_per_minute)):
            if value is not None and not 1 <= value <= 10**9:
                raise InvalidRequest(f"{what} a minute must lie in 1 … 1000000000, found {shown(value)}")
        secret, now = PREFIX + secrets.token_urlsafe(32), time.time()
        row = {
            "name": name, "digest": digest_of(secret), "scopes": " ".join(dict.fromkeys(scopes)), "created": now,
            "expires": None if expires_days is None else now + 86400 * expires_days,
            "requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute,
        }  # fmt: skip
        if any(key.name == name for key in self._fixed):
            raise InvalidRequest(f"there is a key of the name {name} already; take another name")
        try:
            with self._engine.begin() as connection:
                connection.execute(key_table.insert(), row)
        except IntegrityError:
            raise InvalidRequest(f"there is a key of the name {name} already; take another name") from None
        self._read_at = float("-inf")
        return secret

    def revoke(self, name: str, keep_an_admin: bool = False) -> None:
        """Make a key invalid for ever. keep_an_admin: not if it is the last that may manage keys."""
        now = time.time()
        keys = {key.name: key for key in self.all()}
        if name not in keys or keys[name] in self._fixed:
            raise InvalidRequest(f"there is no key {shown(name)} in the store; see scumble keys list")
        others = [key for key in keys.values() if key.name != name and key.is_valid(now) and "admin" in key.scopes]
        if keep_an_admin and "admin" in keys[name].scopes and not any(key.expires is None for key in others):
            raise LastAdminError("this is the last lasting key with the scope admin; create another one first")
        with self._engine.begin() as connection:
            connection.execute(update(key_table).where(key_table.c.name == name).values(revoked=now))
        self._read_at = float("-inf")


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def read_key_file(path: Path) -> list[Key]:
    """Keys of a file, one a line: the key, or name, scopes (with commas) and key. `#` begins a comment.

    A key alone is called key-1, key-2, … and may generate and read metrics.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the file of keys cannot be read: {path}: {error}") from None
    keys: list[Key] = []
    for number, line in enumerate(lines, 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if len(words) not in (1, 3):
            raise InvalidRequest(f"{path}, line {number}: write a key, or name, scopes and key, separated by blanks")
        name, scopes = (words[0], words[1]) if len(words) == 3 else (f"key-{len(keys) + 1}", "generate,metrics")
        if len(words[-1]) < SHORTEST:
            raise InvalidRequest(f"{path}, line {number}: a key needs {SHORTEST} characters at least")
        wrong = [scope for scope in scopes.split(",") if scope not in SCOPES]
        if wrong or not NAME.fullmatch(name) or any(key.name == name for key in keys):
            raise InvalidRequest(f"{path}, line {number}: unknown scope, bad name, or a name that was used before")
        keys.append(Key(name, digest_of(words[-1]), tuple(scopes.split(",")), path.stat().st_mtime))
    if not keys:
        raise InvalidRequest(f"{path} holds no key")
    return keys

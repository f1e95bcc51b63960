"""Where keys and counters live: SQLite beside the audit log, or a PostgreSQL that several servers share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Double,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

from scumble.errors import InvalidRequest, ScumbleError

metadata = MetaData()
key_table = Table(
    "scumble_keys",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),  # SHA-256 of the key, hex; the key itself is nowhere
    Column("scopes", String(256), nullable=False),  # separated by blanks
    Column("created", Double, nullable=False),  # seconds since 1970, as all times here
    Column("expires", Double),
    Column("revoked", Double),
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
)
counter_table = Table(
    "scumble_counters",
    metadata,
    Column("name", String(512), primary_key=True),
    Column("count", Integer, nullable=False),
    Column("ends", Double, nullable=False),
)


class StoreError(ScumbleError):
    """The database of keys cannot be reached or written."""


def open_store(where: Path | str | None) -> Engine:
    """A database with its tables. where: a SQLite file, a postgresql:// URL, or None for one in memory.

    Raises InvalidRequest for URLs of other databases, StoreError where it cannot be opened.
    """
    try:
        if where is None:
            engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
        elif isinstance(where, Path):
            where.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            where.touch(mode=0o600)
            engine = create_engine(f"sqlite:///{where}", connect_args={"timeout": 10})
            event.listen(engine, "connect", _write_ahead)
        else:
            url = make_url(where)
            if url.get_backend_name() != "postgresql":
                raise InvalidRequest("the store must be a file or a postgresql:// URL")
            engine = create_engine(url.set(drivername="postgresql+psycopg"), pool_pre_ping=True, pool_size=4)
        metadata.create_all(engine)
        return engine
    except (SQLAlchemyError, OSError, ImportError) as error:
        # The URL may hold a password, so it is not repeated; nor is the driver's message, which repeats it.
        raise StoreError(f"the database of keys cannot be opened ({type(error).__name__}); see --store") from None


def _write_ahead(connection: Any, _: Any) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}").close()


def upsert(engine: Engine, table: Table) -> Any:
    """INSERT … ON CONFLICT in the database's own dialect."""
    return (postgresql if engine.dialect.name == "postgresql" else sqlite).insert(table)

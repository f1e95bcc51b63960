"""How much a key may ask for: requests and tokens a minute, counted in the store, so that servers can share them."""

from __future__ import annotations

import time
from typing import Any

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage, Storage
from limits.strategies import FixedWindowRateLimiter
from sqlalchemy import Engine, case, delete, select
from sqlalchemy.exc import SQLAlchemyError

from scumble.serve.errors import ApiError
from scumble.serve.keys import Key
from scumble.serve.store import counter_table, upsert


class SqlStorage(Storage):
    """Counters in the store, for the `limits` library. One statement counts and starts a new window, so servers that
    share a database count together."""

    STORAGE_SCHEME = None

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine

    @property
    def base_exceptions(self) -> type[Exception]:
        return SQLAlchemyError

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        now, table = time.time(), counter_table
        insert = upsert(self._engine, table).values(name=key, count=amount, ends=now + expiry)
        over = table.c.ends <= now
        statement = insert.on_conflict_do_update(
            index_elements=[table.c.name],
            set_={
                "count": case((over, amount), else_=table.c.count + amount),
                "ends": case((over, now + expiry), else_=table.c.ends),
            },
        ).returning(table.c.count)
        with self._engine.begin() as connection:
            return int(connection.execute(statement).scalar_one())

    def get(self, key: str) -> int:
        row = self._row(key)
        return 0 if row is None or row["ends"] <= time.time() else int(row["count"])

    def get_expiry(self, key: str) -> float:
        row = self._row(key)
        return time.time() if row is None else float(row["ends"])

    def _row(self, key: str) -> Any:
        query = select(counter_table.c.count.label("count"), counter_table.c.ends).where(counter_table.c.name == key)
        with self._engine.connect() as connection:
            return connection.execute(query).mappings().one_or_none()

    def check(self) -> bool:
        try:
            with self._engine.connect() as connection:
                connection.execute(select(1))
            return True
        except SQLAlchemyError:
            return False

    def reset(self) -> int | None:
        with self._engine.begin() as connection:
            return connection.execute(delete(counter_table)).rowcount

    def clear(self, key: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(delete(counter_table).where(counter_table.c.name == key))


class Limiter:
    """Counts what keys ask for. Raises 429 with Retry-After."""

    def __init__(self, engine: Engine) -> None:
        self._limiter = FixedWindowRateLimiter(SqlStorage(engine))

    def request(self, key: Key) -> None:
        """Count one request."""
        if key.requests_per_minute is not None:
            self._take(key, "requests", key.requests_per_minute, 1)

    def tokens(self, key: Key, count: int) -> None:
        """Count prompt tokens before they are encoded; refuses what does not fit into this minute."""
        if key.tokens_per_minute is not None:
            self._take(key, "tokens", key.tokens_per_minute, count)

    def wrote(self, key: Key, count: int) -> None:
        """Count tokens that were written; they can no longer be refused, but the next request can."""
        if key.tokens_per_minute is not None and count:
            self._limiter.hit(RateLimitItemPerMinute(key.tokens_per_minute), "tokens", key.name, cost=count)

    def _take(self, key: Key, what: str, most: int, cost: int) -> None:
        item = RateLimitItemPerMinute(most)
        if cost > most:
            raise ApiError(429, f"this request needs {cost} {what}; the key may use {most} a minute", code="limit")
        # Tested first: a request that is refused must not use up what is left for smaller ones.
        fits = self._limiter.test(item, what, key.name, cost=cost)
        if not fits or not self._limiter.hit(item, what, key.name, cost=cost):
            ends = self._limiter.get_window_stats(item, what, key.name).reset_time
            after = str(max(1, round(ends - time.time())))
            raise ApiError(
                429, f"the key's limit of {most} {what} a minute is reached; try again in {after} s",
                code="rate_limit_exceeded", headers={"retry-after": after},
            )  # fmt: skip


class Sparingly:
    """At most `most` times a minute; for records that a stranger could otherwise write without end."""

    def __init__(self, most: int) -> None:
        self._item = RateLimitItemPerMinute(most)
        self._limiter = FixedWindowRateLimiter(MemoryStorage())

    def may(self, what: str) -> bool:
        return self._limiter.hit(self._item, what)

"""Who may run now and who waits: a bounded number of answers in the making, and a bounded queue before them."""

from __future__ import annotations

import asyncio

from scumble.serve.errors import ApiError


class Slots:
    """max_running answers at a time, first come first served; at most max_waiting more may wait.

    Raises ApiError: 429 with Retry-After where the queue is full, 503 where the wait took too long.
    """

    def __init__(self, max_running: int, max_waiting: int, queue_seconds: float) -> None:
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.queue_seconds = queue_seconds
        self.running = 0
        self._queue: list[asyncio.Future[None]] = []
        self._last_seconds = 1.0  # how long the last answer held its slot: what a client should wait at least

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def check_room(self, count: int) -> None:
        """Refuse `count` answers that can neither run nor wait."""
        free = self.max_running - self.running + self.max_waiting - self.waiting
        if count > free:
            after = str(min(60, max(1, round(self._last_seconds))))
            raise ApiError(
                429,
                f"the queue is full: {self.running} answers are in the making and {self.waiting} wait; try again in "
                f"{after} s",
                code="queue_full",
                headers={"retry-after": after},
            )

    async def acquire(self) -> None:
        """Wait for a place. Whoever got one must call `release`."""
        if self.running < self.max_running and not self._queue:
            self.running += 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        try:
            async with asyncio.timeout(self.queue_seconds):
                await place
        except BaseException as error:
            if place in self._queue:
                self._queue.remove(place)
            elif place.done() and not place.cancelled():  # the place came in the very moment of giving up
                self.release()
            if isinstance(error, TimeoutError):
                raise ApiError(
                    503,
                    f"the request waited {self.queue_seconds:g} s for a place; try again later",
                    code="queue_timeout",
                    headers={"retry-after": "10"},
                ) from None
            raise

    def release(self, held_seconds: float | None = None) -> None:
        """Give a place back, to whoever waits longest."""
        if held_seconds is not None:
            self._last_seconds = held_seconds
        while self._queue:
            place = self._queue.pop(0)
            if not place.done():
                place.set_result(None)
                return
        self.running -= 1

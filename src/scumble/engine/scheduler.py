"""Who takes part in the next pass: requests that run, requests that wait, and how much of a prompt fits beside them.

Every canvas and every next token takes part in every pass. Prompts fill what is left of the token budget, a chunk a
row, in turns: who was served longest ago goes first, so a line of chat does not wait for a prompt of 100,000 tokens,
and the long prompt moves on in every step all the same.

Requests are let in by what they need now. When those that run come to need more than there is, the youngest gives its
keys and values back and waits until there is room; the oldest always goes on, so all come to their end. That takes
operations by which a text can be encoded again, cut anywhere, with the same bits (`Ops.batch_invariant`). With others
nobody is preempted: requests are let in by the most that they can come to need.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from scumble.decode.steps import Prefill, Step
from scumble.engine.memory import CHUNK, CacheSize
from scumble.engine.prefix import Prefixes
from scumble.engine.row import Row
from scumble.engine.runner import Work
from scumble.model import Transformer

TOKENS = 2048  # of all rows in a pass, canvases and chunks; more would only make every row wait for longer passes
ROWS = 256


class Scheduler:
    """running and waiting: the oldest request first."""

    def __init__(self, model: Transformer):
        self.model = model
        self.size = CacheSize(model.config, model.dtype, model.cache_format)
        self.waiting: deque[Row] = deque()
        self.running: list[Row] = []
        self.step = 0

    # --- memory -----------------------------------------------------------------------------------------------------

    @property
    def reserved(self) -> int:
        """Bytes for all rows that run, and for reading the longest of them."""
        return sum(row.reserved for row in self.running) + self.room(self.running)

    def least(self, row: Row) -> int:
        """Bytes that a row needs for what it wants now, even if no other runs."""
        return self.size(row.tokens, row.pass_tokens) + self.size.room(row.tokens)

    def room(self, rows: Iterable[Row]) -> int:
        """Bytes in which a forward reads one row's cache after another."""
        return max((self.size.room(self.tokens(row)) for row in rows), default=0)

    def tokens(self, row: Row) -> int:
        """For which there must be room: now, or, where nobody can be preempted, ever."""
        return row.tokens if self.model.ops.batch_invariant else max(row.tokens, row.most_tokens)

    def reserve(self, row: Row) -> None:
        """A row wants something else than before; buffers never shrink."""
        row.reserved = max(row.reserved, self.size(self.tokens(row), row.pass_tokens))

    def admit(self, memory: int) -> Iterator[Row]:
        """Waiting requests that may run now, first come, first served. memory: bytes that all rows may take.

        There must be room for what the request needs, and for another canvas of each that runs. The first that does
        not fit holds up all behind it, lest a long request wait for ever. One alone is always let in.
        """
        while self.waiting and len(self.running) < ROWS:
            row = self.waiting[0]
            row.reserved = 0
            self.reserve(row)
            soon = [self.size(one.tokens + one.request.longest, one.pass_tokens) for one in self.running]
            needed = sum(max(one.reserved, more) for one, more in zip(self.running, soon, strict=True))
            needed += row.reserved + self.room((*self.running, row))
            together = sum(one.pass_tokens for one in (*self.running, row))
            if self.running and (needed > memory or together > TOKENS):
                return
            self.running.append(self.waiting.popleft())
            yield row

    def to_preempt(self, memory: int) -> Row | None:
        """The youngest that runs, where all need more than there is; it waits again, before all who have not begun."""
        if self.reserved <= memory or len(self.running) < 2 or not self.model.ops.batch_invariant:
            return None
        self.waiting.appendleft(self.running.pop())
        return self.waiting[0]

    def remove(self, row: Row) -> None:
        if row in self.running:
            self.running.remove(row)
        elif row in self.waiting:
            self.waiting.remove(row)

    # --- the next pass ----------------------------------------------------------------------------------------------

    def turns(self) -> list[Row]:
        """Running rows, who was served longest ago first."""
        self.step += 1
        return sorted(self.running, key=lambda row: row.served)

    def work(self, row: Row, left: int, prefixes: Prefixes) -> Work | None:
        """What a row puts into the next pass, where prompts may put `left` more tokens: what of its text is not encoded
        yet, up to a chunk; and, when all of it is, what it wants. A commit rides along with the next canvas."""
        assert row.cache is not None
        if row.unread > CHUNK or (row.unread > 1 and isinstance(row.wants, Prefill | Step)):
            if left <= 0:
                return None
            taken = prefixes.take_up(row)
            row.cached += 0 if row.answer or row.was_preempted else taken
            if not prefixes.claim(row):
                return None
            row.served = self.step
        begin = row.cache.length
        end = min(row.length, begin + CHUNK)
        return Work(row, row.ids(begin, end) if begin < end else None, is_last=end == row.length)

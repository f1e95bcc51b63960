"""Who takes part in the next pass: requests that run, requests that wait, and how much of a prompt fits beside them.

Every canvas and every next token takes part in every pass. Prompts fill what is left of the token budget, a chunk a
row, in turns: who was served longest ago goes first, so a line of chat does not wait for a prompt of 100,000 tokens,
and the long prompt moves on in every step all the same.

Requests are let in by what they need now. When those that run come to need more than there is, the youngest gives its
keys and values back and waits until there is room; the oldest always goes on, so all come to their end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import accumulate, takewhile

import torch

from scumble.decode.steps import Denoise, Read
from scumble.engine.memory import CHUNK, CacheSize
from scumble.engine.prefix import Prefixes
from scumble.engine.row import Piece, Row, split
from scumble.engine.runner import Work
from scumble.engine.slots import Slots

TOKENS = 2048  # of all rows in a pass, canvases and chunks; more would only make every row wait for longer passes
ROWS = 256


class Scheduler:
    """running and waiting: the oldest request first."""

    def __init__(self, size: CacheSize):
        self.size = size
        self.waiting: deque[Row] = deque()
        self.running: list[Row] = []
        self.step = 0

    # --- memory -----------------------------------------------------------------------------------------------------

    @property
    def reserved(self) -> int:
        """Bytes for the caches of all rows that run, and for reading the longest of them."""
        return sum(row.reserved for row in self.running) + self.room(self.running)

    def least(self, row: Row) -> int:
        """Bytes that a row needs even if no other runs."""
        return row.reserved + self.room([row])

    def room(self, rows: Iterable[Row]) -> int:
        """Bytes in which a forward reads one row's cache after another."""
        return max((self.size.room(row.tokens) for row in rows), default=0)

    def reserve(self, row: Row) -> None:
        """A running row wants something else than before; buffers never shrink."""
        row.reserved = max(row.reserved, self.size(row.tokens))

    def admit(self, memory: int) -> Iterator[Row]:
        """Waiting requests that may run now, first come, first served. memory: bytes that all caches may take.

        There must be room for what the request needs now, and for another canvas of each that runs. The first that does
        not fit holds up all behind it, lest a long request wait for ever. One alone is always let in.
        """
        while self.waiting and len(self.running) < ROWS:
            row = self.waiting[0]
            need, all_rows = self.size(row.tokens), (*self.running, row)
            now = sum(one.reserved for one in self.running)
            soon = sum(self.size(one.tokens + one.request.longest) for one in self.running)
            together = sum(one.pass_tokens for one in all_rows)
            if self.running and (max(now, soon) + need + self.room(all_rows) > memory or together > TOKENS):
                return
            row.reserved = need
            self.running.append(self.waiting.popleft())
            yield row

    def put_back(self, row: Row) -> None:
        """The youngest that runs waits again, before all who have not begun."""
        self.running.remove(row)
        self.waiting.appendleft(row)

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

    def work(self, row: Row, left: int, slots: Slots, prefixes: Prefixes) -> list[Work]:
        """What a row puts into the next pass, where prompts may put `left` more tokens."""
        if row.again:
            return self.work_again(row, prefixes) if left > 0 else []
        if isinstance(row.wants, Denoise):
            own = [slot for slot in slots.slots if slot.row is row]
            ids, row.unread = row.unread, None
            piece = None if ids is None else Piece(ids, tuple(slot.start.canvas.ids[0] for slot in own))
            return [Work(row, piece, slots=own)]
        if isinstance(row.wants, Read):
            return [Work(row, texts=row.wants.texts)]
        if row.unread is None or (left <= 0 and len(row.unread) > 1):
            return []
        if len(row.unread) > 1:
            taken = prefixes.take_up(row, row.unread[:-1])
            if taken:
                row.cached += taken if row.committed == 0 else 0
                row.encoded += [Piece(ids) for ids in row.unread[:taken].split(CHUNK)]
                row.unread = row.unread[taken:]
            if not prefixes.claim(row, row.unread):
                return []
        chunk, row.unread, row.served = row.unread[:CHUNK], row.unread[CHUNK:], self.step
        return [Work(row, Piece(chunk), is_last=len(row.unread) == 0)]

    def work_again(self, row: Row, prefixes: Prefixes) -> list[Work]:
        """A chunk or so of what a preempted row has to encode once more."""
        whole = [piece.ids for piece in takewhile(prefixes.is_whole, row.again)]
        known, row.again = split(row.again, prefixes.take_up(row, torch.cat(whole)) if whole else 0)
        row.encoded += known
        if not row.again or not prefixes.claim(row, row.again[0].ids):
            return []
        row.served = self.step
        tokens = accumulate(len(piece.ids) for piece in row.again)
        count = max(1, sum(total <= CHUNK for total in tokens))
        pieces, row.again = row.again[:count], row.again[count:]
        return [Work(row, piece, is_last=False) for piece in pieces]

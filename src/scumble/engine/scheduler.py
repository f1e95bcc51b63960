"""Who takes part in the next pass: requests that run, requests that wait, and how much of a prompt fits beside them.

Every canvas and every next token takes part in every pass. Prompts fill what is left of the token budget, a chunk a
row, in turns: who was served longest ago goes first, so a line of chat does not wait for a prompt of 100,000 tokens,
and the long prompt moves on in every step all the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from scumble.config import ModelConfig
from scumble.decode.steps import Denoise, Read
from scumble.engine.memory import cache_bytes
from scumble.engine.prefix import Prefixes
from scumble.engine.row import Row
from scumble.engine.runner import Work
from scumble.engine.slots import Slots

CHUNK = 512  # tokens; bounds the memory of attention masks and activations. A fixed size keeps results reproducible.
TOKENS = 2048  # of all rows in a pass, canvases and chunks; more would only make every row wait for longer passes
ROWS = 256


@dataclass
class Scheduler:
    config: ModelConfig
    dtype: torch.dtype
    waiting: deque[Row] = field(default_factory=deque)
    running: list[Row] = field(default_factory=list)
    step: int = 0

    def admit(self, memory: int) -> Iterator[Row]:
        """Waiting requests that may run now, first come, first served. memory: bytes that all caches may take; a
        request counts with all that it can come to need.

        The first that does not fit holds up all behind it, lest a long request wait for ever. One alone always fits.
        """
        while self.waiting and len(self.running) < ROWS:
            row = self.waiting[0]
            together = [*self.running, row]
            need = sum(cache_bytes(self.config, self.dtype, one.most_tokens) for one in together)
            if self.running and (need > memory or sum(one.pass_tokens for one in together) > TOKENS):
                return
            self.running.append(self.waiting.popleft())
            yield row

    def turns(self) -> list[Row]:
        """Running rows for the next step, who was served longest ago first."""
        self.step += 1
        return sorted(self.running, key=lambda row: row.served)

    def work(self, row: Row, left: int, slots: Slots, prefixes: Prefixes) -> Work | None:
        """What a row puts into the next pass, where prompts may put `left` more tokens; None: nothing."""
        if isinstance(row.wants, Denoise):
            chunk, row.unread = row.unread, None
            return Work(row, chunk, slots=[slot for slot in slots.slots if slot.row is row])
        if isinstance(row.wants, Read):
            return Work(row, texts=row.wants.texts)
        if row.unread is None or (left <= 0 and len(row.unread) > 1):
            return None
        if len(row.unread) > 1 and not prefixes.take_up(row):
            return None
        chunk, rest = row.unread[:CHUNK], row.unread[CHUNK:]
        row.unread, row.served = rest, self.step
        return Work(row, chunk, is_last=len(rest) == 0)

    def remove(self, row: Row) -> None:
        if row in self.running:
            self.running.remove(row)
        elif row in self.waiting:
            self.waiting.remove(row)

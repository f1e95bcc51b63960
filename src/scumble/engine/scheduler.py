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

    def plan(self, slots: Slots, prefixes: Prefixes) -> list[Work]:
        """What every running row puts into the next pass."""
        self.step += 1
        prefixes.begin_step()
        left = TOKENS - slots.tokens
        work = []
        for row in sorted(self.running, key=lambda row: row.served):
            if isinstance(row.wants, Denoise):
                own = [slot for slot in slots.slots if slot.row is row]
                chunk, row.unread = row.unread, None
                work.append(Work(row, chunk, True, slots=own))
            elif isinstance(row.wants, Read):
                work.append(Work(row, texts=row.wants.texts))
            elif row.unread is not None and (left > 0 or len(row.unread) == 1):
                if len(row.unread) > 1 and not prefixes.take_up(row):
                    continue
                chunk, rest = row.unread[:CHUNK], row.unread[CHUNK:]
                row.unread, row.served = rest, self.step
                left -= len(chunk)
                work.append(Work(row, chunk, is_last=len(rest) == 0))
        return work

    def remove(self, row: Row) -> None:
        if row in self.running:
            self.running.remove(row)
        elif row in self.waiting:
            self.waiting.remove(row)

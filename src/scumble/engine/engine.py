"""The engine: many requests over one model. Schedule, run, deliver.

One thread at a time may step it (engine/driver.py sees to that); `add` and `cancel` may be called from any.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from scumble.decode import Answer, Request
from scumble.decode.steps import Denoise
from scumble.engine.memory import CHUNK, cache_memory, prefix_memory, too_little
from scumble.engine.prefix import Prefixes
from scumble.engine.row import Deliver, Failed, Outcome, Row
from scumble.engine.runner import Runner, Work
from scumble.engine.scheduler import TOKENS, Scheduler
from scumble.engine.stats import Stats
from scumble.model import Transformer


class Engine:
    def __init__(self, model: Transformer):
        self.model = model
        self.memory = cache_memory(model.device)
        self.runner = Runner(model)
        self.scheduler = Scheduler(model)
        self.prefixes = Prefixes(model, CHUNK, prefix_memory(model))
        self._counts: Counter[str] = Counter()
        self._new: deque[Row] = deque()
        self._cancelled: deque[Row] = deque()

    # --- from any thread --------------------------------------------------------------------------------------------

    def add(self, request: Request, deliver: Deliver, drafts: bool = False) -> Row:
        """Answer a request, when its turn comes. deliver: takes its events, on the thread that steps; it must neither
        block nor raise. The last event is an Answer or Failed. drafts: whether PassDone is wanted too."""
        row = Row(request, deliver, drafts)
        self._new.append(row)
        return row

    def cancel(self, row: Row) -> None:
        """End a request within one step, wherever it is; nothing is delivered any more. Ended ones stay as they are."""
        self._cancelled.append(row)

    @property
    def has_work(self) -> bool:
        return bool(self._new or self._cancelled or self.scheduler.waiting or self.scheduler.running)

    @property
    def stats(self) -> Stats:
        scheduler, counts = self.scheduler, self._counts
        return Stats(
            waiting=len(self._new) + len(scheduler.waiting), running=len(scheduler.running),
            slots=len(self.runner.denoiser.slots(scheduler.running)), prefix_bytes=self.prefixes.nbytes,
            cache_bytes=scheduler.reserved, cache_limit=self.memory, reused=self.prefixes.reused, **counts,
        )  # fmt: skip

    # --- on the thread that steps -----------------------------------------------------------------------------------

    @torch.inference_mode(False)  # buffers made in it could not be written to when another thread steps outside it
    @torch.no_grad()
    def step(self) -> None:
        """Schedule, run, deliver: one pass for everybody who can take part."""
        self.take_orders()
        try:
            batch = self.schedule()
            outcomes = self.runner.run(batch)
            self.keep(batch)
        except Exception as error:  # nobody's in particular
            self.end_all(error)
            return
        for outcome in outcomes:
            self.deliver(outcome)

    @torch.inference_mode(False)
    @torch.no_grad()
    def take_orders(self) -> None:
        """Let go of cancelled requests; let new ones in, as far as there is room."""
        while self._new:
            self.scheduler.waiting.append(self._new.popleft())
        while self._cancelled:
            self.end(self._cancelled.popleft(), None)
        self.share_memory()

    def share_memory(self) -> None:
        """For what running requests need now; then for those that wait; what is left is for cached beginnings."""
        scheduler, memory = self.scheduler, self.memory
        while (row := scheduler.to_preempt(memory)) is not None:
            row.forget()  # its canvases stay as they are: it goes on with the very same tokens
            self._counts["preempted"] += 1
        for row in scheduler.admit(memory):
            row.cache = self.model.new_cache()
            if row.wants is None:
                self.advance(row, None)
        for row in list(scheduler.running):
            if (needed := scheduler.least(row)) > memory:  # it is alone
                self.end(row, Failed(too_little(row.tokens, needed, memory)))
        self.prefixes.fit(memory - scheduler.reserved)

    def schedule(self) -> list[Work]:
        """What every running row puts into the next pass."""
        self.prefixes.begin_step()
        batch: list[Work] = []
        left = TOKENS - sum(slot.length for slot in self.runner.denoiser.slots(self.scheduler.running))
        for row in self.scheduler.turns():
            with self.answerable(row):
                work = self.scheduler.work(row, left, self.prefixes)
                if work is not None:
                    left -= 0 if work.ids is None else len(work.ids)
                    batch.append(work)
        denoising = [work.row for work in batch if work.is_for(Denoise)]
        self._counts["passes"] += len(self.runner.denoiser.slots(denoising))
        self._counts["steps"] += 1
        return batch

    def keep(self, batch: list[Work]) -> None:
        """What was encoded may begin other requests, too."""
        for work in batch:
            if work.ids is not None and work.is_done:
                self._counts["prefilled"] += len(work.ids)
                with self.answerable(work.row):
                    self.prefixes.keep(work.row, len(work.ids), is_alone=not work.is_for(Denoise))

    def deliver(self, outcome: Outcome) -> None:
        row = outcome.row
        if row.is_over:  # an error of another of its candidates came first
            return
        if outcome.error is not None:
            self.end(row, Failed(outcome.error))
        elif outcome.told is not None:
            row.deliver(outcome.told)
        else:
            self.advance(row, outcome.result)

    def advance(self, row: Row, result: object) -> None:
        """Send a row what it waited for, and begin what it wants next."""
        with self.answerable(row):
            answer = row.advance(result)
            if answer is not None:
                self.end(row, replace(answer, cached_tokens=row.cached))
                return
            self.scheduler.reserve(row)
            if isinstance(row.wants, Denoise):
                self.runner.denoiser.begin(row, row.wants)

    @contextmanager
    def answerable(self, row: Row) -> Iterator[None]:
        """An error in here ends this request, and no other."""
        try:
            yield
        except Exception as error:
            self.end(row, Failed(error))

    def end(self, row: Row, last: Answer | Failed | None) -> None:
        """last: the event to end with; None: it was cancelled, and nobody listens."""
        if row.is_over:
            return
        row.is_over = True
        row.life.close()
        self.scheduler.remove(row)
        self.runner.denoiser.drop(row)
        row.cache = row.wants = None
        self._counts["cancelled" if last is None else "failed" if isinstance(last, Failed) else "finished"] += 1
        self._counts["tokens"] += len(row.answer)
        if last is not None:
            row.deliver(last)

    def end_all(self, error: Exception | None) -> None:
        """End every request with an error; None: those who asked are gone."""
        while self._new:
            self.scheduler.waiting.append(self._new.popleft())
        for row in (*self.scheduler.running, *self.scheduler.waiting):
            self.end(row, None if error is None else Failed(error))

"""Who steps the engine.

A caller who waits for an answer, alone, steps the engine himself: no thread is started and none has to be woken, a
stream that is not read costs nothing, and closing it stops the work at once. As soon as there are several callers, or
an event loop that must stay free, one thread of the engine's own takes over, for all of them, until there is nothing
left to do. However many requests there are, at most one thread works on the model at a time.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TypeVar

import torch

from scumble.decode import Request
from scumble.engine.engine import Engine
from scumble.engine.row import Deliver, Row

log = logging.getLogger("scumble")

T = TypeVar("T")
LINGER = 1.0  # seconds that the thread waits for more to do before it ends


class Driver:
    def __init__(self, engine: Engine):
        self.engine = engine
        self._turn = threading.Lock()  # held by whoever steps the engine
        self._changed = threading.Condition()  # guards what follows
        self._callers = 0
        self._guests = 0  # those who wait to use the model apart from the engine
        self._thread: threading.Thread | None = None
        self._is_stopping = False

    @contextmanager
    def caller(self) -> Iterator[Caller]:
        """For as long as somebody waits for requests. Those that are not over at the end are cancelled."""
        with self._changed:
            self._callers += 1
        caller = Caller(self)
        try:
            yield caller
        finally:
            with self._changed:
                self._callers -= 1
            caller.cancel_all()

    def start_thread_if_shared(self, in_thread: bool) -> None:
        """After something was added. in_thread: whoever added it cannot step the engine himself."""
        with self._changed:
            if self._thread is None and not self._is_stopping and (in_thread or self._callers > 1):
                threads = torch.get_num_threads()
                self._thread = threading.Thread(target=self._run, args=(threads,), name="scumble-engine", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def step_if_alone(self) -> bool:
        """One step by the calling thread; False, with nothing done, where the engine has a thread of its own."""
        self._let_guests_go_first()
        with self._turn:
            if self._thread is not None:
                return False
            try:
                self.engine.step()
            except BaseException:  # Ctrl-C in the middle of a pass
                self.engine.end_all(None)
                raise
            return True

    def take_orders_if_idle(self) -> None:
        if self._turn.acquire(blocking=False):
            try:
                self.engine.take_orders()
            finally:
                self._turn.release()

    def _run(self, threads: int) -> None:
        torch.set_num_threads(threads)  # new threads of the system do not inherit it
        atexit.register(self.stop)
        while not self._is_stopping:
            self._let_guests_go_first()
            with self._turn:
                try:
                    self.engine.step()
                except Exception as error:  # a mistake of the engine's own: nobody may wait for ever
                    log.exception("the engine failed; every request that is in it ends")
                    self.engine.end_all(error)
            with self._changed:
                if self._changed.wait_for(lambda: self.engine.has_work or self._is_stopping, LINGER):
                    continue
                self._thread = None
                break
        atexit.unregister(self.stop)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While it is held nobody steps the engine, and the model may be used apart from it."""
        with self._changed:
            self._guests += 1
        try:
            self._turn.acquire()
        finally:
            with self._changed:
                self._guests -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            self._turn.release()

    def _let_guests_go_first(self) -> None:
        """A lock has no queue: whoever steps again and again would take it before those who wait."""
        with self._changed:
            self._changed.wait_for(lambda: not self._guests or self._is_stopping)

    def stop(self) -> None:
        """End the thread after its present pass, at the interpreter's end."""
        self._is_stopping = True
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            with self._changed:
                self._changed.notify_all()
            thread.join()


class Caller:
    """Somebody who waits for the answers to some requests."""

    def __init__(self, driver: Driver):
        self._driver = driver
        self._rows: set[Row] = set()

    def add(self, request: Request, deliver: Deliver, drafts: bool, in_thread: bool = False) -> Row:
        """in_thread: the caller cannot step the engine himself."""
        row = self._driver.engine.add(request, deliver, drafts)
        self._rows = {one for one in self._rows if not one.is_over} | {row}
        self._driver.start_thread_if_shared(in_thread)
        return row

    def next(self, inbox: SimpleQueue[T]) -> T:
        """What is delivered next into the inbox."""
        while inbox.empty() and self._driver.step_if_alone():
            pass
        return inbox.get()

    def cancel(self, row: Row) -> None:
        if not row.is_over:
            self._driver.engine.cancel(row)

    def cancel_all(self) -> None:
        """And give their caches back now, if nobody is stepping the engine; else the next step does it."""
        rows = [row for row in self._rows if not row.is_over]
        for row in rows:
            self._driver.engine.cancel(row)
        if rows:
            self._driver.take_orders_if_idle()

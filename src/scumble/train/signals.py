"""Ctrl-C and SIGTERM during training: the step in progress ends first, so that what is saved is a whole step.

A step changes weight after weight. A state saved in its middle would go on another way than a run that never stopped.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to end. signal: its number."""

    def __init__(self, number: int):
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.signal = number


@contextmanager
def between_steps() -> Iterator[Callable[[], None]]:
    """Yields a function to be called after every step: it raises Interrupted where a signal has come since.

    A second Ctrl-C does not wait for the step: it raises KeyboardInterrupt at once. Outside the main thread, where
    Python has no signals, and where a signal is ignored (nohup), everything stays as it is.
    """
    asked: list[int] = []

    def remember(number: int, _: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    def check() -> None:
        if asked:
            raise Interrupted(asked[0])

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, remember)
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

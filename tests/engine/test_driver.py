"""Who steps the engine, and who may use the model in between."""

from __future__ import annotations

import threading
import time

import pytest

from scumble import GenerationConfig
from scumble.decode import make_request
from scumble.engine import Driver, Engine
from tiny import prompt, tiny_model

MODEL = tiny_model()
LONG = GenerationConfig(max_new_tokens=4000, ignore_eos=True, seed=1)


class UnfairLock:
    """A lock whose waiters look only now and then, as a busy system's do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def acquire(self, blocking: bool = True) -> bool:
        while not self._lock.acquire(blocking=False):
            if not blocking:
                return False
            time.sleep(0.003)
        return True

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()


@pytest.mark.parametrize("in_thread", [True, False], ids=["engine's thread", "caller's thread"])
def test_who_wants_the_model_for_himself_waits_for_no_more_than_the_present_step(in_thread, monkeypatch):
    driver = Driver(Engine(MODEL))
    monkeypatch.setattr(driver, "_turn", UnfairLock())
    begun, steps = threading.Event(), []

    def step() -> None:  # as long as a real one, without the interpreter's lock
        begun.set()
        time.sleep(0.002)
        steps.append(None)

    monkeypatch.setattr(driver.engine, "step", step)
    request = make_request(prompt(3, 1), LONG, {}, MODEL.config)
    with driver.caller() as caller:
        row = caller.add(request, lambda event: None, drafts=False, in_thread=in_thread)

        def follow() -> None:
            while not row.is_over:
                driver.step_if_alone()

        other = threading.Thread(target=follow, daemon=True)
        if not in_thread:
            other.start()
        assert begun.wait(20)
        waited = []
        for _ in range(20):
            before = len(steps)
            with driver.alone():
                waited.append(len(steps) - before)
        monkeypatch.setattr(driver.engine, "step", driver.engine.take_orders)
        caller.cancel(row)
        if not in_thread:
            other.join(20)
            assert not other.is_alive()
    # One for the step in progress, one that may begin while the visitor is still asking.
    assert max(waited) <= 2

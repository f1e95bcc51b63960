"""Timers from outside: own times, nothing left behind, stages that add up."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import prompt, tiny_model

from scumble import LLM
from scumble.bench import stages
from scumble.bench.events import fixed_config, watch
from scumble.bench.stages import Ledger, parts, split, watch_stages, wrapped
from scumble.bench.timing import Marks, marks
from scumble.engine import replay


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def test_a_call_inside_a_call_is_counted_once() -> None:
    clock = Clock()
    ledger = Ledger(Marks(clock, lambda first, last: last - first))

    def inner() -> None:
        clock.time += 2

    def outer() -> None:
        clock.time += 1
        timed_inner()
        timed_inner()
        clock.time += 3

    timed_inner = ledger.wrap(inner, "inner")
    ledger.wrap(outer, "outer")()
    assert ledger.calls == {"inner": 2, "outer": 1}
    assert ledger.take() == {"inner": 4, "outer": 4}
    assert ledger.take() == {}


def test_a_call_that_raises_is_closed() -> None:
    ledger = Ledger(marks(torch.device("cpu")))
    with pytest.raises(ZeroDivisionError):
        ledger.wrap(lambda: 1 / 0, "a")()
    assert ledger._inner == []


def test_nothing_stays_wrapped() -> None:
    model = tiny_model()
    before = [getattr(owner, name) for owner, name, _ in parts(model)]
    own = [name in vars(owner) for owner, name, _ in parts(model)]
    with wrapped(model, Ledger(marks(torch.device("cpu")))):
        assert all(getattr(owner, name) != was for (owner, name, _), was in zip(parts(model), before, strict=True))
    assert [getattr(owner, name) for owner, name, _ in parts(model)] == before
    assert [name in vars(owner) for owner, name, _ in parts(model)] == own


def test_instrumented_tokens_are_the_plain_ones_and_stages_add_up() -> None:
    import time

    llm = LLM(tiny_model())
    config = fixed_config(4, 16, 3)
    plain = watch(llm, prompt(5), config, time.perf_counter)
    run = watch_stages(llm, prompt(5), config, time.perf_counter)
    assert run[0].ids == plain.ids
    assert len(run[1]) == len(run[0].between) == 6  # 2 canvases of 4 passes, the first of each left out
    found = split([run], [plain])
    assert set(found.stages) == set(stages.STAGES) == set(stages.MEANING)
    assert found.total == pytest.approx(sum(found.stages.values()))
    assert found.unseen == ()
    assert all(seconds > 0 for seconds in found.stages.values())
    assert found.passes == 4  # the middle half of six, rounded outwards


def test_on_a_gpu_stages_are_timed_by_events_and_nothing_waits_in_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that stands in for a device's: it goes on when the device works, not when the host asks."""
    clock, waits = Clock(), []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = clock()

        def synchronize(self) -> None:
            waits.append(self)

        def elapsed_time(self, other: Event) -> float:
            return 1e3 * (other.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    ledger = Ledger(marks(torch.device("cuda")))

    def inner() -> None:
        clock.time += 2

    def outer() -> None:
        clock.time += 1
        ledger.wrap(inner, "inner")()

    ledger.wrap(outer, "outer")()
    assert not waits
    assert ledger.take() == {"inner": 2, "outer": 1}
    assert waits


def test_instrumented_passes_are_not_replayed() -> None:
    model = tiny_model()
    with wrapped(model, Ledger(marks(torch.device("cpu")))):
        assert replay._eager.get()
    assert not replay._eager.get()

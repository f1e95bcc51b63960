"""Clocks, medians, and runs that take turns.

Things to compare are run A, B, A, B, … in one process, so that a machine that slows down for a while slows all of them.
A figure is the median of its repeats; its spread is the interquartile range, from the 25th to the 75th percentile.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def clock(device: torch.device) -> Callable[[], float]:
    """A function that returns seconds; on a GPU it first waits until everything that was asked for is done."""
    if device.type != "cuda":
        return time.perf_counter

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


@dataclass(frozen=True)
class Marks:
    """Moments, and the seconds between two of them, so that noting one waits for nothing. On a GPU moments are events
    on its own clock: what lies between two is what the device did and waited, whenever the host asked for it."""

    now: Callable[[], Any]
    between: Callable[[Any, Any], float]


def marks(device: torch.device) -> Marks:
    if device.type != "cuda":
        return Marks(time.perf_counter, lambda first, last: last - first)

    def now() -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(first: Any, last: Any) -> float:
        last.synchronize()
        return first.elapsed_time(last) / 1e3

    return Marks(now, between)


@dataclass(frozen=True)
class Figure:
    """Repeated measurements of one thing: median, the quartiles around it, and how many there were."""

    median: float
    low: float
    high: float
    count: int

    @property
    def spread(self) -> float:
        """Interquartile range, in the figure's own unit."""
        return self.high - self.low

    def scaled(self, factor: float) -> Figure:
        """In another unit."""
        low, high = sorted((self.low * factor, self.high * factor))
        return Figure(self.median * factor, low, high, self.count)

    def per(self, amount: float) -> Figure:
        """`amount` divided by the figure: seconds -> amount a second. The quartiles change places."""
        return Figure(amount / self.median, amount / self.high, amount / self.low, self.count)

    def as_json(self) -> dict[str, Any]:
        return {"median": self.median, "q1": self.low, "q3": self.high, "spread": self.spread, "count": self.count}


def figure(values: Sequence[float]) -> Figure:
    """Median and quartiles of at least one value; linear interpolation between neighbours, ends included."""
    if not values:
        raise ValueError("a figure needs at least one value")
    ordered = sorted(values)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    return Figure(statistics.median(ordered), at(0.25), at(0.75), len(ordered))


def interleave(
    actions: Mapping[str, Callable[[], T]],
    repeats: int,
    warmup: int = 1,
    said: Callable[[str], None] = lambda _: None,
) -> dict[str, list[T]]:
    """Run all actions in turn, `repeats` times: A, B, A, B, … after `warmup` rounds whose results are thrown away."""
    for _ in range(warmup):
        for name, action in actions.items():
            said(f"{name}, warm-up")
            action()
    results: dict[str, list[T]] = {name: [] for name in actions}
    for repeat in range(repeats):
        for name, action in actions.items():
            said(f"{name}, {repeat + 1} of {repeats}")
            results[name].append(action())
    return results


def timed(action: Callable[[], object], now: Callable[[], float]) -> float:
    """Seconds that a call takes."""
    started = now()
    action()
    return now() - started

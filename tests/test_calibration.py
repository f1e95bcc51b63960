"""Calibration on labels whose true odds are known."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scumble.calibration import accuracy, calibration_error, fit_temperature, scaled
from scumble.errors import InvalidRequest


def drawn(count: int, temperature: float, seed: int = 0) -> tuple[list[dict[str, float]], list[str]]:
    """What a model says whose log-odds are `temperature` times too large, and labels drawn with the true odds."""
    rng = random.Random(seed)
    said, truths = [], []
    for _ in range(count):
        odds = rng.gauss(0, 1.5)
        truths.append("yes" if rng.random() < 1 / (1 + math.exp(-odds)) else "no")
        yes = 1 / (1 + math.exp(-odds * temperature))
        said.append({"yes": yes, "no": 1 - yes})
    return said, truths


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found(temperature: float) -> None:
    said, truths = drawn(4000, temperature)
    found = fit_temperature(said, truths)
    assert found == pytest.approx(temperature, rel=0.08)  # 4,000 labels: the estimate's own spread is about 3 %
    others, labels = drawn(4000, temperature, seed=1)
    after = [scaled(own, found) for own in others]
    assert calibration_error(after, labels) < 0.03
    assert accuracy(after, labels) == accuracy(others, labels)
    if temperature != 1.0:
        assert calibration_error(others, labels) > 2 * calibration_error(after, labels)


def test_the_error_of_known_cases() -> None:
    sure = [{"a": 1.0, "b": 0.0}] * 4
    assert calibration_error(sure, ["a", "a", "a", "a"]) == 0
    assert calibration_error(sure, ["a", "a", "b", "b"]) == 0.5
    assert accuracy(sure, ["a", "a", "b", "b"]) == 0.5


@given(st.floats(0.1, 10), st.floats(0.01, 0.99))
def test_scaling_keeps_a_distribution_and_its_order(temperature: float, share: float) -> None:
    after = scaled({"a": share, "b": 1 - share}, temperature)
    assert math.fsum(after.values()) == pytest.approx(1)
    assert (after["a"] >= after["b"]) == (share >= 1 - share)


def test_refused() -> None:
    with pytest.raises(InvalidRequest, match="one right label"):
        fit_temperature([{"a": 1.0, "b": 0.0}], [])
    with pytest.raises(InvalidRequest, match="none of those"):
        fit_temperature([{"a": 1.0, "b": 0.0}], ["c"])

"""Intervals: known values, and what must hold of any."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from scumble.evaluate.statistics import bootstrap, wilson

NUMBERS = st.floats(-100, 100, allow_subnormal=False)


@pytest.mark.parametrize(
    ("passed", "count", "low", "high"),
    [(0, 10, 0, 0.2775), (8, 10, 0.4902, 0.9433), (10, 10, 0.7225, 1), (50, 100, 0.4038, 0.5962), (1, 1, 0.2065, 1)],
)
def test_wilson_s_interval_of_known_cases(passed, count, low, high):
    found = wilson(passed, count)
    assert (found.mean, found.count) == (passed / count, count)
    assert found.low == pytest.approx(low, abs=1e-4)
    assert found.high == pytest.approx(high, abs=1e-4)


@given(st.integers(1, 5000).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_wilson_is_what_scipy_says_and_never_leaves_0_to_1(case):
    passed, count = case
    found = wilson(passed, count)
    judge = binomtest(passed, count).proportion_ci(method="wilson")
    assert found.low == pytest.approx(judge.low, abs=1e-6)
    assert found.high == pytest.approx(judge.high, abs=1e-6)
    assert 0 <= found.low <= found.mean <= found.high <= 1


@pytest.mark.parametrize(("passed", "count"), [(0, 0), (2, 1), (-1, 4)])
def test_rates_of_nothing(passed, count):
    with pytest.raises(ValueError, match="a rate needs"):
        wilson(passed, count)


@settings(max_examples=40)
@given(st.lists(NUMBERS, min_size=1, max_size=30))
def test_a_bootstrap_holds_the_mean_and_is_always_the_same(values):
    found = bootstrap(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert found.low <= found.mean <= found.high
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert found.count == len(values)
    assert bootstrap(values) == found


@settings(max_examples=40)
@example(1.9, [8, 2, 8, 3])  # here the mean is the largest of all roundings
@given(st.floats(0.1, 10), st.lists(st.integers(1, 50), min_size=1, max_size=30))
def test_a_ratio_that_is_the_same_everywhere_has_no_width(ratio, below):
    found = bootstrap([ratio * one for one in below], below)
    assert found.mean == pytest.approx(ratio)
    assert found.low <= found.mean <= found.high
    assert found.high - found.low < 1e-9


def test_a_ratio_weighs_cases_by_their_denominators():
    assert bootstrap([1, 9], [1, 3]).mean == 2.5


def test_negative_means_keep_their_sign():
    found = bootstrap([-1.0, -0.5, 0.25, -1.0, -0.75])
    assert found.mean == pytest.approx(-0.6)
    assert -1 <= found.low < found.mean < found.high < 0.25


def test_cases_without_a_denominator_do_not_spoil_the_interval():
    found = bootstrap([0, 0, 3], [0, 0, 2])  # most resamples of so few cases lack the third one, some have only it
    assert (found.mean, found.low, found.high) == (1.5, 1.5, 1.5)


def test_the_interval_is_as_wide_as_theory_says():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = bootstrap(values.tolist())
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_cases_of_one_group_are_one_piece_of_evidence():
    values = np.repeat(np.random.default_rng(1).normal(0, 1, 20), 10).tolist()
    groups = np.repeat(np.arange(20), 10).tolist()
    alone, together = bootstrap(values), bootstrap(values, groups=groups)
    assert together.mean == alone.mean
    assert together.high - together.low > 2 * (alone.high - alone.low)
    assert bootstrap(values, groups=range(len(values))) == alone


@pytest.mark.parametrize(("above", "below"), [([], None), ([1.0], [0.0])])
def test_means_of_nothing(above, below):
    with pytest.raises(ValueError, match="at least one case"):
        bootstrap(above, below)

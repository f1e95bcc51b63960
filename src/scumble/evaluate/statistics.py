"""Means with 95 % confidence intervals: how far the figure would move with other cases of the same kind."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959964  # the normal distribution has 95 % of its mass within so many standard deviations
RESAMPLES = 2000
BOOTSTRAP_SEED = 20_260_101


@dataclass(frozen=True)
class Estimate:
    """A mean with the bounds of its 95 % confidence interval, and the cases it rests on."""

    mean: float
    low: float
    high: float
    count: int


def wilson(passed: int, count: int) -> Estimate:
    """Share of cases that passed (Wilson 1927). Takes cases as independent. Sensible at 0 and 1, unlike ± σ/√n."""
    if not 0 <= passed <= count or count == 0:
        raise ValueError(f"a rate needs 0 ≤ passed ≤ count and count ≥ 1, found {passed} of {count}")
    share, z2 = passed / count, Z95 * Z95
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    # At 0 and 1 the bound is the share itself, up to rounding.
    return Estimate(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)), count)


def bootstrap(
    numerators: Sequence[float], denominators: Sequence[float] | None = None, groups: Sequence[Hashable] | None = None
) -> Estimate:
    """Σ numerators / Σ denominators (1 each: the mean), with the 2.5 % and 97.5 % points of 2,000 resamples.

    groups: cases of one group (lines of one problem) are drawn together, since they are alike. The seed is fixed.
    """
    top = np.asarray(numerators, np.float64)
    bottom = np.ones_like(top) if denominators is None else np.asarray(denominators, np.float64)
    if len(top) == 0 or bottom.sum() <= 0:
        raise ValueError("a mean needs at least one case")
    sums = np.stack([top, bottom]) if groups is None else _by_group(np.stack([top, bottom]), groups)  # [2, n]
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    ratios = []
    for _ in range(RESAMPLES):
        drawn = sums[:, rng.integers(0, sums.shape[1], sums.shape[1])].sum(1)
        ratios.append(drawn[0] / drawn[1] if drawn[1] > 0 else np.nan)
    low, high = np.nanpercentile(ratios, [2.5, 97.5])
    mean = float(top.sum() / bottom.sum())
    # Where all ratios are one number, sums in another order may miss it by a rounding.
    return Estimate(mean, min(float(low), mean), max(float(high), mean), len(top))


def _by_group(values: NDArray[np.float64], groups: Sequence[Hashable]) -> NDArray[np.float64]:
    """Columns of values [2, n] added up by group -> [2, groups]."""
    places: dict[Hashable, int] = {}
    index = [places.setdefault(group, len(places)) for group in groups]
    out = np.zeros((2, len(places)))
    np.add.at(out.T, np.asarray(index), values.T)
    return out

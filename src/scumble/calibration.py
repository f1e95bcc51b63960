"""Whether probabilities of labels (reads.py) mean what they say, and the temperature that makes them.

A model that says 0.9 ought to be right nine times in ten. Where it is not, all its log-probabilities are divided by one
number, fitted on texts whose right label is known (Guo et al. 2017, "On Calibration of Modern Neural Networks"), and
`temperature=` of `LLM.read` takes it. Judge the result on other texts than those it was fitted on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from scumble.errors import InvalidRequest, shown

COLDEST, HOTTEST = 0.02, 50.0
BINS = 15
Probabilities = Sequence[Mapping[str, float]]  # label -> probability, one mapping a text


def fit_temperature(probabilities: Probabilities, truths: Sequence[str]) -> float:
    """The temperature, in 0.02 … 50, under which the right labels are most probable. Raises InvalidRequest.

    probabilities: as read at temperature 1.
    """
    _check(probabilities, truths)
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(100):  # the loss is convex in 1/temperature: thirds of the range are dropped
        one, two = low + (high - low) / 3, high - (high - low) / 3
        if _loss(probabilities, truths, 1 / one) <= _loss(probabilities, truths, 1 / two):
            high = two
        else:
            low = one
    return 2 / (low + high)


def scaled(probabilities: Mapping[str, float], temperature: float) -> dict[str, float]:
    """What a read at this temperature gives, from what it gave at temperature 1 (exactly so for a single draw)."""
    logs = {label: _log(value) / temperature for label, value in probabilities.items()}
    high = max(logs.values())
    weights = {label: math.exp(value - high) for label, value in logs.items()}
    total = math.fsum(weights.values())
    return {label: weight / total for label, weight in weights.items()}


def accuracy(probabilities: Probabilities, truths: Sequence[str]) -> float:
    """Share of texts whose most probable label is the right one."""
    _check(probabilities, truths)
    return sum(max(own, key=own.__getitem__) == truth for own, truth in zip(probabilities, truths, strict=True)) / len(
        truths
    )


def calibration_error(probabilities: Probabilities, truths: Sequence[str], bins: int = BINS) -> float:
    """Expected calibration error: |confidence - accuracy|, averaged over texts, in bins of the top probability."""
    _check(probabilities, truths)
    sums = [[0.0, 0.0] for _ in range(bins)]  # of confidences, of right answers
    for own, truth in zip(probabilities, truths, strict=True):
        label = max(own, key=own.__getitem__)
        place = sums[min(bins - 1, int(own[label] * bins))]
        place[0] += own[label]
        place[1] += label == truth
    return math.fsum(abs(confidence - right) for confidence, right in sums) / len(truths)


def _loss(probabilities: Probabilities, truths: Sequence[str], temperature: float) -> float:
    return -math.fsum(_log(scaled(own, temperature)[truth]) for own, truth in zip(probabilities, truths, strict=True))


def _log(value: float) -> float:
    return math.log(max(value, 1e-300))


def _check(probabilities: Probabilities, truths: Sequence[str]) -> None:
    if not probabilities or len(probabilities) != len(truths):
        raise InvalidRequest(
            f"calibration needs one right label a text, and at least one text; found {len(probabilities)} texts and "
            f"{len(truths)} labels"
        )
    for own, truth in zip(probabilities, truths, strict=True):
        if truth not in own:
            raise InvalidRequest(f"the right label {shown(truth)} is none of those that were read: {', '.join(own)}")

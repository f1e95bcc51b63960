"""From answers to figures: quality, passes and speed of each variant, and how far apart two variants are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from scumble.evaluate.records import Record
from scumble.evaluate.statistics import Estimate, bootstrap, wilson
from scumble.evaluate.tasks import Metric

Figures = dict[str, Any]  # JSON: an estimate is {"mean", "low", "high", "count"}, or None where nothing was measured


def summarize(records: Sequence[Record], metrics: Sequence[Metric]) -> Figures:
    """Figures of one variant's answers."""
    done = [record for record in records if not record.too_long]
    return {
        "quality": {metric.name: quality(records, metric) for metric in metrics},
        "passes": _ratio(done, "passes"),
        "evaluations": _ratio(done, "evaluations"),
        "tokens": _ratio(done, "tokens"),
        "tokens_per_pass": _ratio(done, "tokens", "passes"),
        "reads": _ratio(done, "reads"),
        "tokens_per_forward": _ratio(done, "tokens", "forwards"),
        "tokens_per_second": _ratio(done, "tokens", "seconds"),
        "first_text_seconds": _ratio(done, "first_text_seconds"),
        "seconds": _ratio(done, "seconds"),
        "too_long": len(records) - len(done),
    }


def quality(records: Sequence[Record], metric: Metric) -> Figures | None:
    """Mean of a metric over the cases that it says something about. Rates by Wilson, means by bootstrap."""
    scored = [record for record in records if metric.name in record.scores]
    if not scored:
        return None
    values = [record.scores[metric.name] for record in scored]
    if metric.kind == "rate":
        return asdict(wilson(sum(value > 0.5 for value in values), len(values)))
    return asdict(bootstrap(values))


def difference(records: Sequence[Record], metric: Metric, variant: str, baseline: str) -> Figures | None:
    """Mean of `variant` minus `baseline`, case by case, with whole groups of cases resampled. None: nothing to pair."""
    by_variant = {
        name: {record.case.name: record for record in records if record.variant == name} for name in (variant, baseline)
    }
    pairs = [
        (record, by_variant[baseline][name])
        for name, record in by_variant[variant].items()
        if name in by_variant[baseline]
        and metric.name in record.scores
        and metric.name in by_variant[baseline][name].scores
    ]
    if not pairs:
        return None
    gaps = [ours.scores[metric.name] - theirs.scores[metric.name] for ours, theirs in pairs]
    return asdict(bootstrap(gaps, groups=[ours.case.group or ours.case.name for ours, _ in pairs]))


def _ratio(records: Sequence[Record], top: str, bottom: str | None = None) -> Figures | None:
    """Sum over sum, or the mean a case; resampled by case."""
    below = None if bottom is None else [getattr(record, bottom) for record in records]
    if not records or (below is not None and sum(below) <= 0):
        return None
    estimate: Estimate = bootstrap([getattr(record, top) for record in records], below)
    return asdict(estimate)

"""A picture of a sweep: quality against canvas evaluations. Needs matplotlib, which nothing else does."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scumble.errors import InvalidRequest, ScumbleError

FORMATS = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Say before the work, not after it, that no picture will come. Raises InvalidRequest or ScumbleError."""
    if path.suffix.lower() not in FORMATS:
        raise InvalidRequest(f"--plot writes {', '.join(FORMATS)}, found {path.name}")
    if find_spec("matplotlib") is None:
        raise ScumbleError("--plot needs matplotlib: pip install matplotlib; without --plot the sweep works")


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Points with their intervals, the front as a line, the autoregressive decoder as a level."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # type: ignore[import-not-found]
    from matplotlib.figure import Figure  # type: ignore[import-not-found]

    task = report["task"]
    metric = next(one for one in task["metrics"] if one["name"] == report["metric"])
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = {}
    for name, own in task["variants"].items():
        quality, cost = own["quality"][metric["name"]], own["evaluations"]
        if quality is None or cost is None:
            continue
        if name == "autoregressive":
            axes.axhspan(100 * quality["low"], 100 * quality["high"], color="0.92", zorder=0)
            label = f"autoregressive, {cost['mean']:.1f} evaluations"
            axes.axhline(100 * quality["mean"], color="0.5", linestyle="--", linewidth=1, label=label)
            continue
        places[name] = (cost["mean"], 100 * quality["mean"])
        bounds = [[places[name][1] - 100 * quality["low"]], [100 * quality["high"] - places[name][1]]]
        axes.errorbar(*places[name], yerr=bounds, fmt="o", color="0.6", markersize=4, linewidth=0.8)
    best = [places[name] for name in report["front"] if name in places]
    line = [[place[axis] for place in best] for axis in (0, 1)]
    axes.plot(*line, "o-", color="tab:brown", markersize=5, label="front", zorder=3)
    axes.set_xlabel("evaluations an answer")
    axes.set_ylabel(f"{metric['label']}, %")
    axes.set_title(f"{task['title']}, {task['cases']} cases", fontsize=10)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)

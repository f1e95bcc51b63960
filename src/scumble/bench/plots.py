"""Pictures of a report. Needs matplotlib, which Scumble does not install."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scumble.errors import ScumbleError

PAINT, FLOOR = "#c0653a", "#8a8a8a"


def need_matplotlib() -> None:
    """Raises ScumbleError, before anything is measured, where there is none."""
    if find_spec("matplotlib") is None:
        raise ScumbleError("--plot needs matplotlib, which is not installed: pip install matplotlib")


def draw(report: dict[str, Any], folder: Path) -> list[Path]:
    """Time by stage, and one picture a curve -> the files written."""
    need_matplotlib()
    import matplotlib  # pyright: ignore[reportMissingImports]

    matplotlib.use("svg")
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    files = []
    under = f"{report['model']['name']}, {report['model']['dtype']}, {report['machine']['processor']}"
    if "stages" in report:
        files.append(_stages(pyplot, report["stages"], under, folder / "stages.svg"))
    for name, points in report.get("curves", {}).items():
        files.append(_curve(pyplot, name, points, under, folder / f"{name.replace(' ', '-')}.svg"))
    return files


def _stages(pyplot: Any, stages: dict[str, Any], under: str, file: Path) -> Path:
    """A bar a stage, its floor as a line across it."""
    names = [name for name in stages["rows"] if name not in stages["not_separately_visible"]]
    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for place, name in enumerate(reversed(names)):
        row = stages["rows"][name]
        axes.barh(place, row["seconds"] * 1e3, color=PAINT, height=0.6)
        if "floor_seconds" in row:
            axes.vlines(row["floor_seconds"] * 1e3, place - 0.4, place + 0.4, color="black", linewidth=1.5)
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.set_xlabel("ms a pass; line: floor on this machine")
    return _save(pyplot, figure, axes, under, file)


def _curve(pyplot: Any, name: str, points: list[dict[str, Any]], under: str, file: Path) -> Path:
    """Median with quartiles, and the floor."""
    at = [point["at"] for point in points]
    middle = [point["seconds"]["median"] * 1e3 for point in points]
    low = [point["seconds"]["q1"] * 1e3 for point in points]
    high = [point["seconds"]["q3"] * 1e3 for point in points]
    figure, axes = pyplot.subplots(figsize=(5.4, 3.6), layout="constrained")
    axes.fill_between(at, low, high, color=PAINT, alpha=0.25, linewidth=0)
    axes.plot(at, middle, "o-", color=PAINT, label="measured")
    axes.plot(at, [point["floor_seconds"] * 1e3 for point in points], "--", color=FLOOR, label="floor")
    axes.set_xscale("log", base=2)
    axes.set_xticks(at, [f"{value:,}" for value in at])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(name)
    axes.set_ylabel("ms a pass")
    axes.legend(frameon=False)
    return _save(pyplot, figure, axes, under, file)


def _save(pyplot: Any, figure: Any, axes: Any, under: str, file: Path) -> Path:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(under, fontsize=8, color="#555555", loc="left")
    figure.savefig(file)
    pyplot.close(figure)
    return file

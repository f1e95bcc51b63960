"""Quality against its cost in canvas evaluations: one task, many settings of the diffusion decoder; the autoregressive
one as reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scumble.errors import InvalidRequest, shown
from scumble.evaluate.catalogue import make_task
from scumble.evaluate.plan import Plan
from scumble.evaluate.run import NOBODY, Watch, heading, measure
from scumble.evaluate.table import HEADLINE, estimate, percent, two
from scumble.evaluate.tasks import Skipped
from scumble.evaluate.variants import GRID, Grid, decoder_variants, grid_variants

if TYPE_CHECKING:
    from scumble.llm import LLM


def sweep(llm: LLM, plan: Plan, watch: Watch = NOBODY, grid: Grid = GRID, metric: str | None = None) -> dict[str, Any]:
    """Measure the plan's one task at every point of the grid -> a report whose `front` names the points that no other
    beats: none has as much quality (by `metric`, the task's first when None) with as few canvas evaluations.

    Raises InvalidRequest and DataError.
    """
    name = plan.tasks[0] if plan.tasks else "infill"
    if name == "loss" or len(plan.tasks) > 1:
        raise InvalidRequest(f"a sweep measures one task that generates, found {', '.join(plan.tasks)}")
    try:
        task = make_task(name, plan, llm)
    except Skipped as reason:
        raise InvalidRequest(f"{name}: {reason}") from None
    known = [one.name for one in task.metrics]
    if metric is not None and metric not in known:
        raise InvalidRequest(f"--metric of {name} must be one of {', '.join(known)}, found {shown(metric)}")
    variants = [*grid_variants(grid, plan.overrides), *decoder_variants(("autoregressive",), {})]
    figures, _ = measure(llm, task, variants, plan.seed, watch)
    points = {name: own for name, own in figures["variants"].items() if name != "autoregressive"}
    chosen = metric or known[0]
    return {**heading(llm, plan), "task": figures, "metric": chosen, "front": front(points, chosen)}


def front(points: Mapping[str, Mapping[str, Any]], metric: str) -> list[str]:
    """Names of the points on the Pareto front of quality (more is better) against evaluations an answer (fewer are)."""
    place = {
        name: (own["evaluations"]["mean"], own["quality"][metric]["mean"])
        for name, own in points.items()
        if own["evaluations"] is not None and own["quality"][metric] is not None
    }
    beaten = {
        name
        for name, (cost, quality) in place.items()
        for others, better in place.values()
        if others <= cost and better >= quality and (others, better) != (cost, quality)
    }
    return sorted((name for name in place if name not in beaten), key=lambda name: place[name])


def print_sweep(report: Mapping[str, Any], console: Console) -> None:
    """The points of a sweep, cheapest first; those on the front are marked."""
    task = report["task"]
    metric = next(one for one in task["metrics"] if one["name"] == report["metric"])
    console.print(Text.assemble((task["title"], HEADLINE), (f"  {task['cases']} cases", "dim")))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("", metric["label"], "evaluations an answer", "passes", "tokens a pass", "tokens a second"):
        table.add_column(Text(column, "dim"), no_wrap=True)
    variants = sorted(task["variants"].items(), key=lambda item: (item[1]["evaluations"] or {"mean": 0})["mean"])
    for name, own in variants:
        mark = "* " if name in report["front"] else "  "
        table.add_row(
            mark + name,
            estimate(own["quality"][metric["name"]], percent),
            *(estimate(own[key], two) for key in ("evaluations", "passes", "tokens_per_pass", "tokens_per_second")),
        )
    console.print(table)
    console.print(Text("* no other point has as much quality with as few evaluations.  [low … high]: 95 %", "dim"))

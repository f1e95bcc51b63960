"""`scumble convert`: a checkpoint in few bits."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from scumble.cli.terminal import error_console

EPILOG = """\
Examples:

  scumble convert path/to/release path/to/int4 --format int4

  scumble convert path/to/release path/to/int4 --format int4 --calibrate texts.jsonl

  scumble convert path/to/model.gguf path/to/folder --format bfloat16
"""


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Checkpoint folder or GGUF file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make; it may not exist yet.")],
    form: Annotated[str, typer.Option("--format", help="int4, int8, fp8, nvfp4; bfloat16: plain again.")] = "int4",
    group_size: Annotated[int, typer.Option(help="int4: how many numbers share a scale.")] = 32,
    keep: Annotated[str, typer.Option(help="Parts of module names that stay as they are: self_attn,experts.7.")] = "",
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=(
                "int4, int8: round by what texts like the model's own give its layers. Plain text, or a "
                '{"text": …} or {"messages": …} a line.'
            ),
        ),
    ] = None,
    calibration_tokens: Annotated[int, typer.Option(help="How many tokens of it are used at most.")] = 32_768,
) -> None:
    """Write a checkpoint in few bits, in the layout of compressed-tensors; or in bfloat16, in the release's.

    Needs little memory, whatever the model's size. After an interruption the same command goes on where it stopped.
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from scumble.checkpoint.convert import convert as run
    from scumble.checkpoint.files import as_folder
    from scumble.errors import size

    words = [word.strip() for word in keep.split(",") if word.strip()]
    console, start = error_console(), time.monotonic()
    unreached: list[str] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading the headers", total=None)
        for step in run(as_folder(source), out, form, group_size, words, calibrate, calibration_tokens):
            bar.update(task, total=step.total, completed=step.done, description=step.part)
            if step.unreached:
                unreached.append(f"{step.part}: {', '.join(map(str, step.unreached))}")
    for line in unreached:
        console.print(f"experts that calibration never reached, rounded to the nearest: {line}", highlight=False)
    written = sum(file.stat().st_size for file in out.iterdir())
    console.print(f"{out}: {form}, {size(written)}, in {time.monotonic() - start:.0f} s", highlight=False)

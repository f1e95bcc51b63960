"""`scumble bench`: how fast a model runs here, where the time goes, and how far that is from the machine's limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from scumble.cli.options import CacheDtype
from scumble.cli.terminal import can_draw, error_console, uninterrupted
from scumble.errors import InvalidRequest, ScumbleError

EPILOG = """\
Examples:

  scumble bench --shape small-315m --against transformers

  scumble bench path/to/checkpoint --mode adaptive --json

  scumble bench --shape small-315m --quick

  scumble bench --project
"""

WHAT, HOW, OUTPUT = "What to measure", "How", "Output"


def bench(
    model: Annotated[Path | None, typer.Argument(help="Checkpoint folder; the embedded model when left out.")] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="Random weights instead: small-315m, wide, release, tiny; or embedded.", rich_help_panel=WHAT
        ),
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Cut a shape to so many layers.", rich_help_panel=WHAT)] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="auto, float32, bfloat16, int8, int4, on a card also fp8, nvfp4. Shapes: bfloat16.",
            rich_help_panel=WHAT,
        ),
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=WHAT)] = "auto",
    cache_dtype: CacheDtype = None,
    mode: Annotated[
        str, typer.Option(help="fixed: so many passes; adaptive: real prompts; both.", rich_help_panel=HOW)
    ] = "both",
    passes: Annotated[int, typer.Option(help="Passes a canvas in fixed mode.", rich_help_panel=HOW)] = 12,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of the random prompt.", rich_help_panel=HOW)] = 128,
    new_tokens: Annotated[int, typer.Option("--new-tokens", "-n", help="Tokens to write.", rich_help_panel=HOW)] = 256,
    repeats: Annotated[int, typer.Option(help="Rounds; figures are their medians.", rich_help_panel=HOW)] = 5,
    threads: Annotated[int | None, typer.Option(help="Threads of torch.", rich_help_panel=HOW)] = None,
    seed: Annotated[int, typer.Option(help="Of weights, prompt and noise.", rich_help_panel=HOW)] = 0,
    against: Annotated[
        str | None, typer.Option(help="transformers: run it beside, on the same weights.", rich_help_panel=HOW)
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A look, not a measurement: 1 round, 3 passes.", rich_help_panel=HOW)
    ] = False,
    curves: Annotated[
        bool,
        typer.Option("--curves", help="Also cost against canvas, context, experts, batch.", rich_help_panel=HOW),
    ] = False,
    project: Annotated[
        bool, typer.Option("--project", help="Project the release's shape on other machines.", rich_help_panel=WHAT)
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=OUTPUT)] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Folder for pictures; measures the curves.", rich_help_panel=OUTPUT)
    ] = None,
) -> None:
    """Measure a model's speed: prefill, passes, tokens, memory, by stage and against this machine's limits."""
    if project:
        from scumble.bench.projection import project_release
        from scumble.bench.report import print_projection

        sheet = project_release()
        _print_json(sheet) if as_json else print_projection(sheet)
        return
    if plot is not None:
        from scumble.bench.plots import need_matplotlib

        need_matplotlib()
        _need_folder(plot)
    with uninterrupted():
        from scumble.bench.report import print_report
        from scumble.bench.run import Options, run_bench
        from scumble.bench.subject import Subject

    if quick:
        passes, repeats, new_tokens = min(passes, 3), 1, min(new_tokens, 64)
    options = Options(
        passes=passes, mode=_mode(mode), prompt_tokens=prompt_tokens, new_tokens=new_tokens, repeats=repeats,
        threads=threads, against=against, seed=seed, quick=quick, curves=curves or plot is not None,
    )  # fmt: skip
    path = None if model is None else str(model)
    subject = Subject(
        path=path, shape=shape, layers=layers, dtype=dtype, device=device, seed=seed, cache_dtype=cache_dtype
    )
    with _progress() as said:
        report = run_bench(subject, options, said)
    if as_json:
        _print_json(report)
    else:
        print_report(report)
    if plot is not None:
        from scumble.bench.plots import draw

        for file in draw(report, plot):
            error_console().print(f"scumble: wrote {file}", soft_wrap=True)


def _mode(mode: str) -> Any:
    if mode not in ("fixed", "adaptive", "both"):
        raise InvalidRequest(f"--mode must be fixed, adaptive or both, found {mode!r}")
    return mode


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False))


def _need_folder(folder: Path) -> None:
    """Before minutes of measuring, not after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ScumbleError(f"{folder}: {error.strerror or error}; name another folder with --plot") from None


class _progress:
    """What is being done, on stderr: one line that changes on a terminal, otherwise nothing."""

    def __init__(self) -> None:
        self.console = error_console()
        self.status = self.console.status("", spinner="dots", spinner_style="dim") if can_draw(self.console) else None

    def __enter__(self) -> Any:
        if self.status is None:
            return lambda _: None
        self.status.start()
        return lambda text: self.status.update(f"[dim]{text}[/dim]") if self.status is not None else None

    def __exit__(self, *_: object) -> None:
        if self.status is not None:
            self.status.stop()

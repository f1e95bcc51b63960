"""`scumble batch`: answer a file of requests."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from scumble.cli import options as o
from scumble.cli.loading import load_llm
from scumble.cli.serve_state import need_serve
from scumble.cli.terminal import can_draw, error_console
from scumble.errors import InvalidRequest

EPILOG = """\
Examples:

  scumble batch requests.jsonl answers.jsonl

  scumble batch requests.jsonl answers.jsonl --model path/to/checkpoint --at-once 16
"""


def batch(
    requests: Annotated[Path, typer.Argument(help="File of requests, one a line, in OpenAI's batch format.")],
    answers: Annotated[Path, typer.Argument(help="File of answers; what it holds already is not asked again.")],
    model: o.Model = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    cache_dtype: o.CacheDtype = None,
    served_model_name: Annotated[str | None, typer.Option(help="What the requests call the model.")] = None,
    at_once: Annotated[int, typer.Option(help="Requests in the making at the same time.")] = 8,
) -> None:
    """Answer a file of requests. A run that was ended, even by kill -9, goes on where it was."""
    need_serve()
    from scumble.serve.app import make_app, make_service
    from scumble.serve.batch import Output, Progress, read_batch, run_batch
    from scumble.serve.settings import ServeSettings

    if not 1 <= at_once <= 1024:
        raise InvalidRequest(f"--at-once must lie in 1 … 1024, found {at_once}")
    lines = read_batch(requests)
    output = Output(answers, {line.custom_id for line in lines})
    console = error_console()
    names = (served_model_name,) if served_model_name else ()
    service = make_service(
        load_llm(model, dtype, device, cache_dtype, console),
        ServeSettings(names=names, max_running=at_once, max_waiting=4096),
    )
    service.ready = True
    live = can_draw(console)

    def tell(progress: Progress) -> None:
        line = f"{progress.done} of {progress.total} answered, {progress.failed} refused"
        if progress.tokens:
            line += f", {progress.tokens_per_second:.1f} tokens/s"
        if live:
            console.print(Text(line), end="\r")
        elif progress.done == progress.total or progress.done == progress.before:
            console.print(Text(line))

    try:
        progress = asyncio.run(run_batch(make_app(service), lines, output, at_once, tell))
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    finally:
        output.close()
        service.stop()
    if live:
        console.print()
    if progress.failed:
        console.print(Text(f"scumble: {progress.failed} requests were refused; their lines say why"))

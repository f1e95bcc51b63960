"""`scumble generate`: continue a text, drawing the canvas while it forms."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scumble.cli import options as o
from scumble.cli.confidence import LEGEND, coloured
from scumble.cli.loading import load_llm
from scumble.cli.prompt import read_prompt
from scumble.cli.terminal import can_draw, error_console, quiet_keyboard, stdout_is_terminal, visible
from scumble.errors import InvalidRequest

if TYPE_CHECKING:
    from rich.console import Console

    from scumble.cli.follow import Outcome
    from scumble.cli.screen import Screen
    from scumble.decode import Request
    from scumble.events import Generation, TokenLogprobs
    from scumble.llm import LLM

EPILOG = """\
Examples:

  scumble generate "def mean(values):" --seed 7

  cat start.py | scumble generate --echo -n 512 > whole.py

  scumble generate -f above.py --suffix "$(cat below.py)"

  scumble generate $'if not items:\\n    ' --repair "return Nonee"

  scumble generate "import os" --json --logprobs 3
"""


@o.setting_options()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="Text to continue; - or nothing reads stdin.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from a file.")] = None,
    suffix: Annotated[str | None, typer.Option(help="Fill in what stands between the prompt and this text.")] = None,
    repair: Annotated[
        str | None, typer.Option(help="Put this text right, which stands between the prompt and --suffix.")
    ] = None,
    model: o.Model = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    cache_dtype: o.CacheDtype = None,
    echo: Annotated[
        bool,
        typer.Option(
            "--echo",
            rich_help_panel=o.SCREEN,
            help=(
                "Print the prompt in front, and the suffix behind, so that the whole text comes out; not with --json."
            ),
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object with everything.", rich_help_panel=o.SCREEN)
    ] = False,
    no_live: o.NoLive = False,
    delay: o.Delay = 0.0,
    *,
    settings: Mapping[str, Any],
) -> None:
    """Continue a text.

    On a terminal the canvas is drawn while it is denoised. Into a pipe or file goes the text alone.
    Ctrl-C ends early and keeps what was committed.
    """
    if echo and as_json:
        raise InvalidRequest("--echo is for text, and --json prints one object without the prompt; leave one out")
    if "logprobs" in settings and not as_json and not can_draw(error_console()):
        raise InvalidRequest("--logprobs is printed with --json, or as colours on a terminal; add --json")
    text = read_prompt(prompt, file)
    console = error_console()
    config = o.generation_config(settings)
    llm = load_llm(model, dtype, device, cache_dtype, console)
    live = can_draw(console) and not no_live and not as_json
    if suffix is None and repair is None:
        request = llm.text_request(text, config)
    else:
        request = llm.fill_request(text, suffix or "", config, repair)
    around = (text, suffix or "") if echo else None
    _run(llm, text, request, console, live=live, as_json=as_json, delay=delay, around=around)


def _run(
    llm: LLM,
    prompt: str,
    request: Request,
    console: Console,
    *,
    live: bool,
    as_json: bool,
    delay: float,
    around: tuple[str, str] | None,
) -> None:
    """around: what to print in front of the answer and behind it; None: the answer alone."""
    from scumble.cli.follow import INTERRUPTED, follow, print_summary
    from scumble.cli.screen import EchoScreen

    events = llm.stream_request(request)
    screen = _screen(llm, request, console, "" if around else prompt, live=live, as_json=as_json)
    with quiet_keyboard(live):
        if around is not None:
            screen = EchoScreen(screen, *around)
        outcome = follow(events, screen, delay)
    if as_json:
        text = json.dumps(describe(outcome, llm, request), ensure_ascii=False)
        print(visible(text) if stdout_is_terminal() else text)
    sys.stdout.flush()
    if live or (can_draw(console) and not as_json):
        print_summary(console, outcome, request.decoder)
        _print_confidence(console, outcome, llm)
    if outcome.generation is None:
        raise typer.Exit(INTERRUPTED)


def _print_confidence(console: Console, outcome: Outcome, llm: LLM) -> None:
    """The answer's tokens in colours, where --logprobs was given."""
    done = outcome.generation
    if done is not None and done.logprobs is not None and llm.tokenizer is not None:
        tokens = ((llm.tokenizer.decode([one.token_id]), one.logprob) for one in done.logprobs)
        console.print(coloured(tokens))
        console.print(LEGEND, style="dim")


def _screen(llm: LLM, request: Request, console: Console, prompt: str, *, live: bool, as_json: bool) -> Screen:
    from scumble.cli.canvas_view import CanvasView
    from scumble.cli.screen import LiveScreen, PlainScreen, SilentScreen

    if as_json:
        return SilentScreen()
    if not live:
        return PlainScreen()
    view = CanvasView(llm.tokenizer, request.eos_ids, request.max_new_tokens)
    return LiveScreen(console, view, prompt, request.schedule.passes, request.max_new_tokens, len(request.noises))


def describe(outcome: Outcome, llm: LLM, request: Request) -> dict[str, Any]:
    """The object that --json prints. finish_reason: "stop", "length", or "interrupted"."""
    done = outcome.generation
    seconds = outcome.seconds if done is None else done.seconds
    logprobs = None if done is None or done.logprobs is None else [_logprob(llm, one) for one in done.logprobs]
    return {
        "text": outcome.text if done is None else done.text,
        "token_ids": outcome.token_ids if done is None else list(done.token_ids),
        "finish_reason": "interrupted" if done is None else done.finish_reason,
        "prompt_tokens": len(request.prompt),
        "passes": outcome.passes if done is None else list(done.passes),
        "evaluations": outcome.evaluations if done is None else done.evaluations,
        "reads": 0 if done is None else done.reads,
        "seconds": seconds,
        "first_text_seconds": None if done is None else done.first_text_seconds,
        "tokens_per_second": len(outcome.token_ids) / seconds if seconds > 0 else None,
        "logprobs": logprobs,
        **_marked(done),
        "model": {
            "path": str(llm.folder),
            "dtype": str(llm.model.dtype).removeprefix("torch."),
            "device": str(llm.model.device),
        },
        "config": asdict(request.config),  # every setting, as the request ran with it
    }


def _marked(done: Generation | None) -> dict[str, Any]:
    """What an answer holds beside its text."""
    if done is None:
        return {
            "thinking": None,
            "thinking_tokens": 0,
            "thinking_closed": None,
            "tool_calls": [],
            "malformed_tool_calls": [],
        }
    return {
        "thinking": done.thinking,
        "thinking_tokens": done.thinking_tokens,
        "thinking_closed": done.thinking_closed,
        "tool_calls": [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in done.tool_calls],
        "malformed_tool_calls": list(done.malformed_tool_calls),
    }


def _logprob(llm: LLM, one: TokenLogprobs) -> dict[str, Any]:
    def token(id: int) -> str:
        return "" if llm.tokenizer is None else llm.tokenizer.decode([id], skip_special=False)

    top = [{"token_id": id, "token": token(id), "logprob": value} for id, value in one.top]
    return {"token_id": one.token_id, "token": token(one.token_id), "logprob": one.logprob, "top": top}

"""Options that several commands share: the model's, the screen's, and one a setting, from the table of settings."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from scumble.errors import InvalidRequest
from scumble.reading import read_text
from scumble.settings import SETTINGS, GenerationConfig, OneOf, Real, Schema, Setting, Text, Texts, Whole, YesNo

SAMPLING = "Sampling"
MODEL = "Model"
SCREEN = "Output"

Model = Annotated[
    Path | None,
    typer.Option("--model", "-m", help="Checkpoint folder; the embedded model when left out.", rich_help_panel=MODEL),
]
Dtype = Annotated[
    str, typer.Option(help="auto, float32, bfloat16, int8, int4; on a card also fp8, nvfp4.", rich_help_panel=MODEL)
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=MODEL)]
CacheDtype = Annotated[
    str | None,
    typer.Option(
        help="int8 or fp8: keys and values in eight bits, for long contexts; nothing: the model's dtype.",
        metavar="int8|fp8", rich_help_panel=MODEL,
    ),
]  # fmt: skip
NoLive = Annotated[bool, typer.Option("--no-live", help="Do not draw the canvas.", rich_help_panel=SCREEN)]
Delay = Annotated[
    float,
    typer.Option(help="Hold every drawn pass for so many seconds, to watch.", min=0, max=60, rich_help_panel=SCREEN),
]


def setting_options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: the command gets an option for each of these settings (all when none is named), behind its own.

    It receives those that were given as `settings`, a mapping by the names of GenerationConfig.
    """
    rows = [SETTINGS[name] for name in names or SETTINGS]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(**given: Any) -> Any:
            values = {row.name: _value(row, given.pop(row.name)) for row in rows}
            return command(**given, settings={name: value for name, value in values.items() if value is not None})

        own = inspect.signature(command, eval_str=True).parameters.values()
        kept = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own if one.name != "settings"]
        signature = inspect.Signature([*kept, *map(_parameter, rows)])
        run.__signature__ = signature  # type: ignore[attr-defined]  # typer reads it
        run.__annotations__ = {one.name: one.annotation for one in signature.parameters.values()}
        return run

    return decorate


def _parameter(row: Setting) -> inspect.Parameter:
    """The option of one setting, unset by default."""
    kinds: dict[type, tuple[Any, str | None]] = {
        Whole: (int, None), Real: (float, None), YesNo: (bool, None), Texts: (list[str], None), OneOf: (str, None),
        Text: (str, None), Schema: (str, "<file>|<json>"),
    }  # fmt: skip
    kind, metavar = kinds[type(row.values)]
    if isinstance(row.values, Whole) and row.values.also:
        kind, metavar = str, f"<int>|{row.values.also}"
    if isinstance(row.values, OneOf):
        metavar = "|".join(row.values.names)
    option = typer.Option(*row.option, help=row.help, metavar=metavar, rich_help_panel=SAMPLING)
    flag = isinstance(row.values, YesNo)
    annotation = Annotated[kind if flag else kind | None, option]
    return inspect.Parameter(
        row.name, inspect.Parameter.KEYWORD_ONLY, default=False if flag else None, annotation=annotation
    )


def _value(row: Setting, given: Any) -> Any:
    """What the command line gave, as GenerationConfig takes it; None where nothing was given."""
    if isinstance(row.values, YesNo):
        return given or None
    if isinstance(row.values, Texts):
        return tuple(given) if given else None
    if isinstance(row.values, Whole) and isinstance(given, str):
        return number_or_word(given)
    if isinstance(row.values, Schema) and isinstance(given, str) and not given.lstrip().startswith("{"):
        return _content(row, given)
    if isinstance(row.values, Text) and row.values.file and isinstance(given, str) and "::=" not in given:
        return _content(row, given)
    return given


def _content(row: Setting, path: str) -> str:
    """The text of a file that was named in a setting's place."""
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{row.option[0]}: {path} cannot be read ({error})") from None


def generation_config(settings: Mapping[str, Any]) -> GenerationConfig:
    """The checked configuration. A setting of the other decoder is refused here, and not by GenerationConfig: programs
    hand one configuration to both decoders, people do not."""
    config = GenerationConfig(**settings)
    if config.decoder == "autoregressive" and (idle := config.without_effect()):
        options = ", ".join(SETTINGS[name].option[0] for name in idle)
        raise InvalidRequest(f"{options}: for canvases, without effect on --decoder autoregressive; leave one out")
    return config


def number_or_word(text: str) -> Any:
    """A whole number where the text is one; GenerationConfig judges all else."""
    try:
        return int(text)
    except ValueError:
        return text

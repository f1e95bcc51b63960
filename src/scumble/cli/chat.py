"""`scumble chat`: a conversation, drawn live on a terminal; piped, one message a line in, answers out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from scumble.cli import options as o
from scumble.cli.loading import load_llm
from scumble.cli.prompt import decode
from scumble.cli.terminal import can_draw, error_console, visible
from scumble.errors import ScumbleError, TemplateError
from scumble.settings import SETTINGS

if TYPE_CHECKING:
    from rich.console import Console

    from scumble.cli.conversation import Conversation

EPILOG = """\
Examples:

  scumble chat --seed 7 --save talk.json

  printf 'Hello\\nAnd then?\\n' | scumble chat
"""

PLAIN_TEXT = (  # of models that `scumble train` made of documents
    "was trained on plain text and has no chat template: answers may mean nothing; use scumble generate PROMPT"
)
HELP = """\
/reset          forget the conversation
/system TEXT    instructions for the model; without TEXT: none
/seed N         another seed
/save FILE      write the conversation as JSON
/help           this list
/quit           leave, like Ctrl-D
Ctrl-C stops an answer and keeps what was committed."""


@o.setting_options(*(name for name in SETTINGS if name not in ("ignore_eos", "logprobs")))
def chat(
    model: o.Model = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    cache_dtype: o.CacheDtype = None,
    system: Annotated[str | None, typer.Option(help="Instructions for the model.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the conversation to this file after every answer.")] = None,
    no_live: o.NoLive = False,
    delay: o.Delay = 0.0,
    *,
    settings: Mapping[str, Any],
) -> None:
    """Talk with a model that has a chat template.

    On a terminal /help lists what else can be typed. Piped, every line is one message, and only answers are printed.
    """
    console = error_console()
    config = o.generation_config(settings)
    from scumble.text.chat import check_can_chat

    try:
        if model is not None and model.is_dir():
            check_can_chat(model)  # before minutes of reading weights
        llm = load_llm(model, dtype, device, cache_dtype, console)
        template = llm.chat_template
    except TemplateError as error:
        raise TemplateError(f"{error}; to continue plain text, use: scumble generate PROMPT") from None
    if template.is_built_in and llm.folder is not None and (llm.folder / "training.json").exists():
        name = "the embedded model" if model is None else str(model)
        console.print(Text(visible(f"scumble: {name} {PLAIN_TEXT}"), "dim"), soft_wrap=True)
    from scumble.cli.conversation import Conversation

    talk = Conversation(llm, config, console, can_draw(console) and not no_live, delay, save)
    talk.set_system(system or "")
    if sys.stdin.isatty():
        _interactive(talk, console)
    else:
        _piped(talk)


def _piped(talk: Conversation) -> None:
    from scumble.cli.follow import INTERRUPTED

    for number, raw in enumerate(sys.stdin.buffer, start=1):
        line = decode(raw, f"stdin, line {number},").strip()
        if not line:
            continue
        if line.startswith("/"):
            try:
                if not command(talk, line):
                    return
            except ScumbleError as error:
                talk.complain(f"stdin, line {number}: {error}")
        elif not talk.say(line):
            raise typer.Exit(INTERRUPTED)


def _interactive(talk: Conversation, console: Console) -> None:
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  # gives input() a history and editing
    talk.note("/help lists the commands, Ctrl-D leaves")
    while True:
        try:
            line = _ask(console).strip()
            if line.startswith("/"):
                if not command(talk, line):
                    return
            elif line:
                talk.say(line)
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            console.print()
            talk.note("Ctrl-D leaves")
        except ScumbleError as error:
            talk.complain(str(error))


def _ask(console: Console) -> str:
    """One line from a person. The sign before it never gets into a file that stdout goes to."""
    if sys.stdout.isatty():
        return input("› ")
    console.print("› ", end="")
    return input()


def command(talk: Conversation, line: str) -> bool:
    """Do what a line that begins with / says; False: leave."""
    name, _, rest = line[1:].partition(" ")
    rest = rest.strip()
    if name in ("quit", "exit"):
        return False
    if name == "reset":
        talk.reset()
    elif name == "system":
        talk.set_system(rest)
        talk.note("instructions set; the conversation starts anew" if rest else "no instructions")
    elif name == "seed":
        talk.set_seed(rest)
    elif name == "save":
        talk.save(Path(rest).expanduser() if rest else None)
    elif name == "help":
        talk.note(HELP)
    else:
        talk.complain(f"no command /{name}; /help lists them")
    return True

"""Write docs/reference.md from the code: public names with signatures and docstrings, and the command line's options.

python docs/make_reference.py            writes the file
python docs/make_reference.py --check    exit code 1 when the file is out of date
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import click
from typer.core import TyperCommand, TyperGroup

import scumble
import scumble.checkpoint
from scumble.cli.main import LazyGroup, app, load_command
from scumble.model import Transformer
from scumble.settings import SETTINGS

TARGET = Path(__file__).parent / "reference.md"
MODEL_METHODS = ("new_cache", "encode", "denoise_logits")


def document(name: str, thing: object) -> list[str]:
    """A name's heading, signature and docstring; of a class its public methods too, those of its own bases included."""
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return []
    lines = [f"### {name}", ""]
    if not (inspect.isclass(thing) and issubclass(thing, Exception)):
        lines += ["```python", signature(name, thing), "```", ""]
    lines += [doc(thing), ""]
    if inspect.isclass(thing) and not issubclass(thing, Exception):
        bases = [base for base in thing.__mro__ if base.__module__.startswith("scumble.")]
        for method, function in [pair for base in bases for pair in vars(base).items()]:
            inner = function.__func__ if isinstance(function, classmethod) else function
            if not method.startswith("_") and inspect.isfunction(inner) and inner.__doc__:
                lines += [f"**`{signature(method, inner)}`**", "", doc(inner), ""]
    return lines


def signature(name: str, thing: object) -> str:
    text = str(inspect.signature(thing)) if callable(thing) else ""
    text = re.sub(r"\((self|cls)(, )?", "(", text)
    return f"{name}{text}".replace("'", "")


def doc(thing: object) -> str:
    return inspect.cleandoc(getattr(thing, "__doc__", "") or "")


def settings() -> list[str]:
    """The table of settings, and what else there is to know about some of them."""
    lines = ["### Settings", "", "| name | allowed | release | decoder | meaning |", "|---|---|---|---|---|"]
    for row in SETTINGS.values():
        default = "" if row.default is None else f"`{row.default!r}`"
        meaning = f"{row.help} {row.more}".strip().replace("|", "\\|")
        lines.append(f"| `{row.name}` | {row.values.allowed} | {default} | {row.decoder or 'both'} | {meaning} |")
    return [*lines, ""]


def commands() -> list[str]:
    lines = []
    group = LazyGroup(name="scumble")
    for name in group.list_commands(click.Context(group)):
        lines += command_table(name, load_command(name))
    return lines


def command_table(name: str, command: TyperCommand | TyperGroup) -> list[str]:
    if isinstance(command, TyperGroup):
        return [line for sub, inner in command.commands.items() for line in command_table(f"{name} {sub}", inner)]
    lines = [f"### scumble {name}", "", (command.help or "").split("\n")[0], "", "| option | meaning |", "|---|---|"]
    for parameter in command.params:
        names = ", ".join(parameter.opts) if parameter.param_type_name == "option" else (parameter.name or "").upper()
        help_text = (getattr(parameter, "help", None) or "").replace("|", "\\|")
        lines.append(f"| `{names}` | {help_text} |")
    return [*lines, ""]


def build() -> str:
    lines = ["# Reference", "", "Made from the code by `python docs/make_reference.py`; do not edit.", ""]
    lines += ["## scumble", ""]
    for name in scumble.__all__:
        lines += document(name, getattr(scumble, name))
        lines += settings() if name == "GenerationConfig" else []
    lines += ["## scumble.checkpoint", ""]
    for name in scumble.checkpoint.__all__:
        lines += document(name, getattr(scumble.checkpoint, name))
    lines += ["## The model that load_checkpoint returns", "", doc(Transformer), ""]
    for name in MODEL_METHODS:
        method = inspect.unwrap(getattr(Transformer, name))
        lines += [f"**`{signature(name, method)}`**", "", doc(method), ""]
    lines += ["## Command line", "", *commands()]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    text = build()
    if "--check" in sys.argv:
        return 0 if TARGET.exists() and TARGET.read_text(encoding="utf-8") == text else 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    assert app is not None  # the command line imports
    sys.exit(main())

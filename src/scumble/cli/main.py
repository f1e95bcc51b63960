"""The `scumble` command: finds the subcommand, imports only that one, and turns every error into one clear line."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from scumble.errors import ScumbleError

INTERRUPTED = 130  # 128 + SIGINT
SPINS = "500"  # about ten microseconds


class Entry(NamedTuple):
    """A command's attribute in scumble.cli.<name>, and its line in `scumble --help`."""

    attribute: str
    help: str


COMMANDS = {
    "generate": Entry("generate", "Continue a text, drawing the canvas while it forms."),
    "chat": Entry("chat", "Talk with a model, turn by turn."),
    "fill": Entry("fill", "Fill the holes of a text."),
    "edit": Entry("edit", "Write a region of a text anew."),
    "read": Entry("read", "Ask a question about each of many texts."),
    "score": Entry("score", "Show how probable a text is, token by token."),
    "info": Entry("info", "Show a checkpoint's architecture, parameters and memory."),
    "train": Entry("train", "Train a model from a configuration file."),
    "eval": Entry("eval", "Measure a model's quality."),
    "bench": Entry("bench", "Measure a model's speed."),
    "serve": Entry("serve", "Serve a model over HTTP."),
    "keys": Entry("app", "Make, list and revoke a server's keys."),
    "audit": Entry("app", "Check, export and prune a server's audit log."),
    "batch": Entry("batch", "Answer a file of requests."),
    "pull": Entry("pull", "Download a checkpoint from a model hub."),
    "convert": Entry("convert", "Convert a checkpoint's number format."),
}  # a command whose file does not exist is not listed


class LazyGroup(TyperGroup):
    """Imports a command when it is called. The list of commands needs none of them."""

    _listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name in COMMANDS if find_spec(f"scumble.cli.{name}") is not None]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        if self._listing:
            return TyperCommand(cmd_name, short_help=COMMANDS[cmd_name].help)
        return load_command(cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False


def load_command(name: str) -> Any:
    """The command object of scumble.cli.<name>: a function becomes a command, a Typer a group of commands."""
    module = import_module(f"scumble.cli.{name}")
    target = getattr(module, COMMANDS[name].attribute)
    if isinstance(target, typer.Typer):
        group = typer.main.get_group(target)
        group.name = name
        return group
    single = typer.Typer(add_completion=False, rich_markup_mode="rich")
    single.command(name, epilog=getattr(module, "EPILOG", "").replace("[", r"\["))(target)
    return typer.main.get_command(single)


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, add_completion=False, rich_markup_mode="rich")

EXAMPLE = """\
Examples:

  scumble generate "def mean(values):"

  scumble info path/to/checkpoint
"""


def _print_version(asked: bool) -> None:
    if asked:
        from scumble import __version__

        print(f"scumble {__version__}")
        raise typer.Exit


@app.callback(epilog=EXAMPLE)
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; may stand behind the command too.")
    ] = False,
) -> None:
    """Scumble writes text on a canvas: all tokens of a block at once, denoised in parallel over a few passes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line -> exit code: 0, 1 (runtime), 2 (usage), 130 (Ctrl-C)."""
    arguments, debug = take_debug(sys.argv[1:] if arguments is None else arguments)
    wait_shortly()
    replace_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot spell a character gets its number
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = app(args=arguments, prog_name="scumble", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except SystemExit as exit:  # the way a broken pipe leaves typer
        _silence_stdout()
        return exit.code if isinstance(exit.code, int) else 1
    except Exception as error:
        return report(error, debug)
    return code if isinstance(code, int) else 0


def wait_shortly() -> None:
    """OpenMP threads that wait for the next loop spin for about ten microseconds, then sleep; by default they spin for
    milliseconds, which on busy cores takes the time in which others would do their work (docs/performance.md).

    The runtime reads this once, when torch is imported. Only the command sets it: in a program of yours it is yours.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def replace_closed_streams() -> None:
    """A standard stream that the caller closed is None to Python; from here on it is empty, or takes all.

    Its number is taken too, so that no file opened later becomes stdout by accident.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # as long as the process


def take_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """`--debug` is accepted anywhere before a `--`; returns the other arguments, and whether it was there."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    kept = [argument for argument in arguments[:end] if argument != "--debug"]
    return [*kept, *arguments[end:]], len(kept) < end


def report(error: Exception, debug: bool) -> int:
    """Say on stderr, in one line, what went wrong; returns the exit code."""
    if isinstance(error, BrokenPipeError):
        _silence_stdout()
        return 1
    code, line = explain(error)
    if isinstance(error, OSError):
        _silence_stdout()
    with contextlib.suppress(OSError):
        if debug:
            import traceback

            traceback.print_exception(error)
        if line:
            print(f"scumble: error: {line}", file=sys.stderr)
    return code


def explain(error: Exception) -> tuple[int, str]:
    """Exit code and one line for an error; the line is empty where the help has been shown instead."""
    from scumble.cli.terminal import visible

    if isinstance(error, ScumbleError):
        code, line = error.exit_code, str(error)
    elif hasattr(error, "format_message"):  # typer's usage errors
        code, line = 2, _usage(error)
    elif isinstance(error, OSError):
        code, line = 1, _system(error)
    else:
        code, line = 1, f"{type(error).__name__}: {error}; this is a bug, run with --debug for the traceback"
    return code, visible(" ".join(line.split()))


def _usage(error: Any) -> str:
    message = str(error.format_message()).strip()
    if not message or type(error).__name__ == "NoArgsIsHelpError":
        return ""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "scumble"
    return f"{message.rstrip('.')}; see {command} --help"


def _system(error: OSError) -> str:
    what = error.strerror or str(error)
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}{what}; the output is incomplete, free some space and run it again"
    return f"{where}{what}; run with --debug for the traceback"


def _silence_stdout() -> None:
    """Nothing more can be written: what is still buffered must not raise again when Python ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())

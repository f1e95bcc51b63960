"""`python tools/corpus build | tokenizer | pack`, from the repository, with Scumble and its dev extra installed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a folder, this file is no part of a package

import typer

from corpus.commands import app
from scumble.cli.main import report

INTERRUPTED = 130  # 128 + SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line -> exit code, as `scumble` has them: 0, 1 (runtime), 2 (usage), 130 (Ctrl-C)."""
    try:
        code = app(args=arguments, prog_name="python tools/corpus", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:
        return report(error, debug=False)
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Where the `scumble` command begins: loads the command line so that Ctrl-C ends it quietly from its first moment."""

from __future__ import annotations

import os
import signal
from types import FrameType

INTERRUPTED = 130  # 128 + SIGINT


def main() -> int:
    """Load the command line, then run it -> its exit code.

    Ctrl-C while modules load would show a traceback, or be turned into some other error by the module it struck. So
    until they are loaded it ends the process, which has done nothing yet. Where it is ignored (nohup), it stays so.
    """
    listens = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if listens:
        signal.signal(signal.SIGINT, _leave)
    from scumble.cli.main import main as run

    if listens:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)

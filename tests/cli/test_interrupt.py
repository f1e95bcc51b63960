"""Ctrl-C while the command line or a library is still being loaded: exit code 130 and not a word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from scumble.cli.terminal import uninterrupted

# Ctrl-C arrives at the moment in which the command line's own module is looked for.
STRUCK = """
import os, signal, sys
from scumble.cli.entry import main

class Finder:
    def find_spec(self, name, *rest):
        if name == "scumble.cli.main":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
signal.signal(signal.SIGINT, signal.{handler})
sys.argv = ["scumble", "--version"]
sys.exit(main())
"""


def run(handler: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", STRUCK.format(handler=handler)], capture_output=True, text=True)


def test_while_the_command_line_is_loaded():
    done = run("default_int_handler")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_where_it_is_ignored_it_stays_ignored():
    done = run("SIG_IGN")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("scumble ")


def test_an_import_is_not_left_half_done():
    done = []

    @uninterrupted()
    def load() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        load()
    assert done == ["all of it"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

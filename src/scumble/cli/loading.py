"""Load the model that a command works with, with something to look at meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from scumble.cli.terminal import spinner, uninterrupted
from scumble.errors import CheckpointError

if TYPE_CHECKING:
    from scumble.llm import LLM


def load_llm(path: Path | None, dtype: str, device: str, cache_dtype: str | None, console: Console) -> LLM:
    """The model in a folder, or the embedded one. Says on the console what loading left out."""
    with spinner(console, "loading the model"):
        with uninterrupted():
            from scumble.llm import LLM, embedded_path  # torch takes a second or two

        if path is None and not embedded_path().is_dir():
            raise CheckpointError("this installation has no embedded model; name a checkpoint folder with --model PATH")
        llm = LLM.load(path, dtype, device, cache_dtype=cache_dtype)
    report = llm.model.load_report
    for line in report.lines() if report is not None else ():
        console.print(Text(f"scumble: {line}", "dim"), soft_wrap=True)
    return llm

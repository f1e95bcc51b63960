"""Tokens in the colours of their log-probabilities, for terminals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from scumble.cli.terminal import visible

if TYPE_CHECKING:
    from rich.text import Text

UNLIKELY, SURPRISING = -3.0, -6.0  # nats: below one in 20, below one in 400
LEGEND = "green: expected, yellow: below one in 20, red: below one in 400"


def coloured(tokens: Iterable[tuple[str, float | None]]) -> Text:
    """(what the token writes, its log-probability in nats; None: it has none)"""
    from rich.text import Text

    shown = Text()
    for token, logprob in tokens:
        shown.append(visible(token), style_of(logprob))
    return shown


def style_of(logprob: float | None) -> str:
    if logprob is None:
        return ""
    return "red" if logprob < SURPRISING else "yellow" if logprob < UNLIKELY else "green"

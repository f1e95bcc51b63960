"""Run the events of one answer to their end, onto a screen; Ctrl-C ends it early and keeps what was committed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from scumble.events import Committed, Draft, Finished, Generation

if TYPE_CHECKING:
    from scumble.cli.screen import Screen

INTERRUPTED = 130  # exit code: 128 + SIGINT


@dataclass
class Outcome:
    """What came of an answer. generation: None when it was interrupted; text and token_ids are what was committed."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    evaluations: int = 0
    seconds: float = 0.0
    generation: Generation | None = None


def follow(events: Iterator[Draft | Committed | Finished], screen: Screen, delay: float = 0.0) -> Outcome:
    """Show events as they come. delay: seconds to hold every drawn pass."""
    outcome = Outcome()
    started = time.perf_counter()
    try:
        for event in events:
            _take(event, outcome, screen, delay)
    except KeyboardInterrupt:
        pass
    finally:
        outcome.seconds = time.perf_counter() - started
        events.close()  # type: ignore[attr-defined]  # a generator: gives the cache back now
        screen.close()
    return outcome


def _take(event: Draft | Committed | Finished, outcome: Outcome, screen: Screen, delay: float) -> None:
    if isinstance(event, Draft):
        outcome.passes[event.canvas :] = [event.pass_index + 1]
        outcome.evaluations += 1
        if event.candidate:  # one of them is drawn, all are counted
            return
        screen.draft(event)
        if delay:
            time.sleep(delay)
    elif isinstance(event, Committed):
        outcome.text += event.text
        outcome.token_ids += event.token_ids
        screen.committed(event.text, len(event.token_ids))
    else:
        outcome.generation = event.generation


def summary(outcome: Outcome, decoder: str) -> str:
    """One line for people: tokens, passes, tokens a pass, seconds, tokens a second, why it ended."""
    done = outcome.generation
    tokens = len(outcome.token_ids)
    passes = list(done.passes) if done is not None else outcome.passes
    seconds = done.seconds if done is not None else outcome.seconds
    ends = {"stop": "ended", "length": "token limit reached"}
    evaluations = outcome.evaluations if done is None else done.evaluations
    total = max(sum(passes), 1)
    parts = [_plural(tokens, "token")]
    if decoder == "diffusion":
        each = f" ({' + '.join(map(str, passes))})" if 1 < len(passes) <= 6 else ""
        canvases = f" over {len(passes)} canvases" if len(passes) > 6 else ""
        parts += [_plural(sum(passes), "pass", "passes") + canvases + each, f"{tokens / total:.1f} tokens a pass"]
        if evaluations > sum(passes):
            parts.append(f"{evaluations} canvas evaluations")
        if done is not None and done.reads > len(passes):  # more than to choose
            parts.append(f"{done.reads} reads")
    parts += [f"{seconds:.1f} s", f"{tokens / max(seconds, 1e-9):.0f} tok/s"]
    parts.append("interrupted" if done is None else ends[done.finish_reason])
    return " · ".join(parts)


def print_summary(console: Console, outcome: Outcome, decoder: str) -> None:
    console.print()
    console.print(Text(summary(outcome, decoder), "dim"), soft_wrap=True)


def _plural(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"

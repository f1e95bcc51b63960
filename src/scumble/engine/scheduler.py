"""Run the programs of many rows side by side, each at its own stage, over a shared model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from scumble.engine.steps import Answer, Event, Steps
from scumble.model import Segment, Transformer


def run(
    model: Transformer, programs: Sequence[Steps], batch_invariant: bool = True
) -> Iterator[tuple[int, Event | Answer]]:
    """Advance all rows until each has returned its Answer; yields (row, event) in the order in which they happen.

    batch_invariant: every row's segment is a forward of its own. A matrix product rounds differently for different
    numbers of rows, and a rounding can flip an argmax; only this way is a row's result, bit for bit, independent of
    its neighbours. False: one forward over all segments, faster where many small rows share one device.
    Closing a program between two events cancels its row; closing the iterator ends all of them.
    """
    replies: dict[int, Tensor | None] = dict.fromkeys(range(len(programs)))
    try:
        while replies:
            segments: dict[int, Segment] = {}
            for row in list(replies):
                for event in _until_segment(programs[row], replies.pop(row)):
                    if isinstance(event, Segment):
                        segments[row] = event
                    else:
                        yield row, event
            replies = dict(zip(segments, forward(model, list(segments.values()), batch_invariant), strict=True))
    finally:
        for program in programs:
            program.close()


def _until_segment(program: Steps, reply: Tensor | None) -> Iterator[Segment | Event | Answer]:
    """Send the reply, then pass on what the program yields up to its next segment, or its answer."""
    try:
        while True:
            with torch.no_grad():  # not around the yield: the caller's code is not ours to switch gradients off in
                item = program.send(reply)
            yield item
            if isinstance(item, Segment):
                return
            reply = None
    except StopIteration as stop:
        if stop.value is not None:  # None: the caller closed the program, a cancelled row
            yield stop.value


@torch.no_grad()
def forward(model: Transformer, segments: list[Segment], batch_invariant: bool) -> list[Tensor]:
    """Hidden states [n, D] of every segment."""
    if batch_invariant:
        return [model([segment]) for segment in segments]
    if not segments:
        return []
    return list(model(segments).split([segment.tokens.shape[0] for segment in segments]))

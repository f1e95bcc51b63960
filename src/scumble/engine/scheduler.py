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
            work: dict[int, tuple[Segment, ...]] = {}
            for row in list(replies):
                for event in _until_work(programs[row], replies.pop(row)):
                    if isinstance(event, tuple):
                        work[row] = event
                    else:
                        yield row, event
            replies = dict(zip(work, forward(model, list(work.values()), batch_invariant), strict=True))
    finally:
        for program in programs:
            program.close()


def _until_work(program: Steps, reply: Tensor | None) -> Iterator[tuple[Segment, ...] | Event | Answer]:
    """Send the reply, then pass on what the program yields up to its next segments, or its answer."""
    try:
        while True:
            with torch.no_grad():  # not around the yield: the caller's code is not ours to switch gradients off in
                item = program.send(reply)
            if isinstance(item, Segment | tuple):
                yield (item,) if isinstance(item, Segment) else item
                return
            yield item
            reply = None
    except StopIteration as stop:
        if stop.value is not None:  # None: the caller closed the program, a cancelled row
            yield stop.value


@torch.no_grad()
def forward(model: Transformer, work: list[tuple[Segment, ...]], batch_invariant: bool) -> list[Tensor]:
    """For every row's segments: the hidden states [n, D] of those that are not quiet."""
    if batch_invariant:
        return [model(segments) for segments in work]
    if not work:
        return []
    sizes = [sum(segment.tokens.shape[0] for segment in segments if not segment.quiet) for segments in work]
    return list(model([segment for segments in work for segment in segments]).split(sizes))

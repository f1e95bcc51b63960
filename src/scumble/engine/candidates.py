"""Several candidates for one canvas: denoised side by side, read by the causal model, the likeliest kept.

A denoised canvas is checked by nobody: its positions were accepted each for itself. The same weights can read it from
left to right in one more pass and say how likely it is as a text.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from scumble.engine.commit import shift, token_logprobs
from scumble.engine.steps import PassDone, Work
from scumble.errors import check_output
from scumble.generation import TokenLogprobs
from scumble.model import Cache, Segment, Transformer

T = TypeVar("T")


def side_by_side(
    programs: Sequence[Generator[Work | PassDone, Any, T]],
) -> Generator[Work | PassDone, Any, list[T]]:
    """Run the programs of one row's candidates, all their segments in one forward -> what each of them returned."""
    returned: dict[int, T] = {}
    replies: dict[int, Tensor | None] = dict.fromkeys(range(len(programs)))
    while replies:
        work: dict[int, tuple[Segment, ...]] = {}
        for number, reply in replies.items():
            try:
                item = programs[number].send(reply)
                while isinstance(item, PassDone):
                    yield replace(item, candidate=number)
                    item = next(programs[number])
                work[number] = (item,) if isinstance(item, Segment) else item
            except StopIteration as stop:
                returned[number] = stop.value
        replies = {}
        if work:
            hidden = yield tuple(segment for segments in work.values() for segment in segments)
            sizes = [sum(s.tokens.shape[0] for s in segments if not s.quiet) for segments in work.values()]
            replies = dict(zip(work, hidden.split(sizes), strict=True))
    return [returned[number] for number in range(len(programs))]


@dataclass(frozen=True)
class Read:
    """A text as the causal model sees it. last_hidden [1, D]: of its last token."""

    logprobs: tuple[TokenLogprobs, ...]
    last_hidden: Tensor


def read(
    model: Transformer, cache: Cache, texts: Sequence[Tensor], last_hidden: Tensor, alternatives: int
) -> Generator[Work, Tensor, list[Read]]:
    """Read texts (ids [n] each) that might follow what the cache holds, in one forward; the cache stays as it is.

    last_hidden [1, D]: of the context's last token. A text is read apart from being encoded when it is committed, also
    where there is only one: so asking for log-probabilities changes no token.
    """
    hidden = yield tuple(Segment(ids, cache, "read") for ids in texts)
    weight = model.embed_tokens.weight
    return [
        Read(token_logprobs(shift(last_hidden, own), ids, weight, model.config, alternatives), own[-1:])
        for own, ids in zip(hidden.split([ids.shape[0] for ids in texts]), texts, strict=True)
    ]


def likeliest(texts: Sequence[Sequence[TokenLogprobs]], ended: Sequence[bool], fits: Sequence[bool]) -> int:
    """Which of several texts to keep: one that fits what the request prefers, if there is any; of those, one that came
    to its end; of those, the one with the highest mean log-probability a token; of equals, the earliest.

    The mean alone would like a text that repeats itself for ever best.
    """
    means = [sum(one.logprob for one in text) / len(text) for text in texts]
    check_output(sum(means))
    return max(range(len(means)), key=lambda number: (fits[number], ended[number], means[number]))

"""Several candidates for one canvas: denoised side by side, read and corrected by the causal model, the best kept.

A denoised canvas is checked by nobody: its positions were accepted each for itself. The same weights can read it from
left to right in one more pass and say how likely it is as a text.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from scumble.engine.commit import cut, shift, token_logprobs
from scumble.engine.request import Request
from scumble.engine.revise import edits
from scumble.engine.steps import PassDone, Work
from scumble.errors import check_output
from scumble.events import TokenLogprobs
from scumble.model import Cache, Segment, Transformer

T = TypeVar("T")
REVISED = 4  # texts that a round of revision starts from: the best so far


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
class Text:
    """Ids [n ≥ 1] that might be committed, whether they came to their end, and whether they are as the request prefers
    them; as the causal model reads them: logprobs, one a token, and last_hidden [1, D], of the last token."""

    ids: Tensor
    ended: bool
    fits: bool
    logprobs: tuple[TokenLogprobs, ...]
    last_hidden: Tensor

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """Which of several texts to keep, the highest: one that fits what the request prefers, if there is any; of
        those, one that came to its end; of those, the one with the highest mean log-probability a token.

        The mean alone would like a text that repeats itself for ever best.
        """
        return self.fits, self.ended, sum(one.logprob for one in self.logprobs) / len(self.logprobs)


def choose(
    model: Transformer, request: Request, cache: Cache, answer: Sequence[int], drafts: Sequence[tuple[Tensor, bool]],
    last_hidden: Tensor, room: int,
) -> Generator[Work, Tensor, tuple[Text, int]]:  # fmt: skip
    """Read what a canvas's candidates became, correct it as often as the request says (see engine/revise.py) -> the
    text to commit, of equals the earliest, and how often was read.

    answer: what is committed already, with which the cache and last_hidden [1, D] end. drafts: ids and whether they
    came to their end. room: how many tokens a text may have.
    """
    settings = request.settings
    rounds = 0 if request.pinned else settings.revisions
    alternatives = max(settings.logprobs or 0, 1 if rounds else 0)
    firsts = None if answer or request.first is None else set(request.first.tolist())
    drafts = [*drafts, *_as_given(request, len(answer), room, firsts, last_hidden.device)]
    known = {tuple(ids.tolist()) for ids, _ in drafts}

    def read_all(new: Sequence[tuple[Tensor, bool]]) -> Generator[Work, Tensor, list[Text]]:
        found = yield from read(model, cache, [ids for ids, _ in new], last_hidden, alternatives)
        fits = [request.check is None or request.check([*answer, *ids.tolist()], ended) for ids, ended in new]
        return [Text(*draft, fit, *own) for draft, fit, own in zip(new, fits, found, strict=True)]

    texts = yield from read_all(drafts)
    reads = 1
    for _ in range(rounds):
        new = []
        for text in sorted(texts, key=lambda text: text.rank, reverse=True)[:REVISED]:
            for changed in edits(text.logprobs):
                ids, ended = cut(torch.tensor(changed, device=text.ids.device), settings, room)
                key = tuple(ids.tolist())
                if key not in known and (firsts is None or key[0] in firsts):
                    known.add(key)
                    new.append((ids, ended))
        if not new:  # the best texts are as good as they get
            break
        texts += yield from read_all(new)
        reads += 1
    return max(texts, key=lambda text: text.rank), reads


def _as_given(
    request: Request, begin: int, room: int, firsts: set[int] | None, device: torch.device
) -> list[tuple[Tensor, bool]]:
    """The part of the request's draft that lies on the canvas, as it stands: it is right already if no candidate reads
    better. Nothing where there is no choice, or where it does not hold what is promised."""
    settings = request.settings
    if request.draft is None or request.pinned or (len(request.noises) == 1 and not settings.revisions):
        return []
    given = request.draft[begin : begin + room]
    if not len(given) or (firsts is not None and int(given[0]) not in firsts):
        return []
    return [cut(given.to(device), settings, room)]


def read(
    model: Transformer, cache: Cache, texts: Sequence[Tensor], last_hidden: Tensor, alternatives: int
) -> Generator[Work, Tensor, list[tuple[tuple[TokenLogprobs, ...], Tensor]]]:
    """Read texts (ids [n] each) that might follow what the cache holds, in one forward; the cache stays as it is.
    -> of each, its log-probabilities and the hidden state of its last token [1, D].

    last_hidden [1, D]: of the context's last token. A text is read apart from being encoded when it is committed, also
    where there is only one: so asking for log-probabilities changes no token.
    """
    hidden = yield tuple(Segment(ids, cache, "read") for ids in texts)
    found = [
        (token_logprobs(model, shift(last_hidden, own), ids, alternatives), own[-1:])
        for own, ids in zip(hidden.split([ids.shape[0] for ids in texts]), texts, strict=True)
    ]
    check_output(sum(one.logprob for logprobs, _ in found for one in logprobs))
    return found

"""The main loop: one request, from prompt ids to committed ids, one canvas after another.

What happens inside a canvas (denoise, propose, accept, renoise, until it is stable and confident) is engine/denoise.py,
for all rows at once. A command that is yielded runs there; see steps.py.
"""

from __future__ import annotations

from scumble.decode.constraint import Constraint
from scumble.decode.request import Place, Request
from scumble.decode.steps import Answer, Denoise, Life, Prefill, Start, TokensCommitted
from scumble.diffusion import start_canvas


def canvases(request: Request) -> Life:
    """Answer a request canvas by canvas."""
    behind = yield Prefill(heard=request.selector.reads)

    answer: list[int] = []
    passes: list[int] = []
    evaluations = 0
    constraint = request.constraint
    while True:
        index, begin = len(passes), len(answer)
        length, room = request.canvas_length(index), request.max_new_tokens - begin
        denoised = yield Denoise(index, first_canvases(request, constraint, index, begin))

        drafts = [request.cut(one.ids, room) for one in denoised]
        room = min(length, room)
        place = Place(behind, request.drafted(begin, room), room, constraint)
        text = yield from request.selector.choose(request, place, drafts)
        spent = sum(one.passes for one in denoised)
        passes.append(max(one.passes for one in denoised))
        evaluations += spent
        answer += text.ids
        yield TokensCommitted(text.ids, index, text.logprobs, passes[-1], spent, text.reads)

        if text.ended or len(answer) == request.max_new_tokens:  # the last canvas is never encoded for its own sake
            return Answer("stop" if text.ended else "length", tuple(passes), evaluations)
        behind, constraint = text.last, constraint.after(text.ids)


def first_canvases(request: Request, constraint: Constraint, index: int, begin: int) -> tuple[Start, ...]:
    """Canvas number `index` before its first pass, one a candidate: noise, with what the request's draft and the
    constraint say about it. begin: its first position in the answer."""
    length, draft = request.canvas_length(index), request.drafted(begin, request.canvas_length(index))
    starts = []
    for noise in request.noises:
        restriction = constraint.restrict(length, request.max_new_tokens - begin, request.vocab)
        canvas = start_canvas(noise, index, length, request.vocab, draft, restriction.pinned)
        starts.append(Start(canvas, noise, restriction))
    return tuple(starts)

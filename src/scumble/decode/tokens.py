"""The honest baseline: the same weights, one token at a time."""

from __future__ import annotations

from scumble.decode.request import Request
from scumble.decode.steps import Answer, Life, Step, Stepped, TokensCommitted


def tokens(request: Request) -> Life:
    """Answer a request token by token. Token number i takes the noise of canvas i, pass 0, position 0."""
    constraint, limit = request.constraint, request.max_new_tokens
    for index in range(limit):
        stepped: Stepped = yield Step(index, constraint.restrict(1, limit - index, request.vocab))
        logprobs = None if stepped.logprobs is None else (stepped.logprobs,)
        yield TokensCommitted((stepped.token,), index, logprobs)
        if stepped.token in request.eos_ids:
            return Answer("stop", (index + 1,), index + 1)
        constraint = constraint.after((stepped.token,))
    return Answer("length", (limit,), limit)

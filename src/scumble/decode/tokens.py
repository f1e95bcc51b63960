"""The honest baseline: the same weights, one token at a time."""

from __future__ import annotations

import torch

from scumble.decode.request import Request
from scumble.decode.steps import Answer, Life, Step, Stepped, TokensCommitted


def tokens(request: Request) -> Life:
    """Answer a request token by token. Token number i takes the noise of canvas i, pass 0, position 0."""
    constraint, unread, limit = request.constraint, request.prompt, request.max_new_tokens
    for index in range(limit):
        stepped: Stepped = yield Step(unread, index, constraint.restrict(1, limit - index, request.vocab))
        logprobs = None if stepped.logprobs is None else (stepped.logprobs,)
        yield TokensCommitted((stepped.token,), index, logprobs)
        if stepped.token in request.eos_ids:
            return Answer("stop", (index + 1,), index + 1)
        unread, constraint = torch.tensor([stepped.token]), constraint.after((stepped.token,))
    return Answer("length", (limit,), limit)

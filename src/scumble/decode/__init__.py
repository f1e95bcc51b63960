"""One row's life as straight-line code: what it asks of the model, and in which order. Ids only; no model in here."""

from scumble.decode.canvases import canvases
from scumble.decode.constraint import Constraint, Forbidden, OneOf, Pins
from scumble.decode.make import make_request
from scumble.decode.request import Request
from scumble.decode.steps import Answer, Life, PassDone, TokensCommitted
from scumble.decode.tokens import tokens


def live(request: Request) -> Life:
    """The life of one row, by the decoder that the request names."""
    return (canvases if request.decoder == "diffusion" else tokens)(request)


__all__ = [
    "Answer",
    "Constraint",
    "Forbidden",
    "Life",
    "OneOf",
    "PassDone",
    "Pins",
    "Request",
    "TokensCommitted",
    "live",
    "make_request",
]

"""From prompt ids to committed ids: requests, the main loop, the scheduler. Ids only; text lives at the edge."""

from scumble.engine.generate import generate
from scumble.engine.request import Request, make_request
from scumble.engine.scheduler import run
from scumble.engine.steps import Answer, PassDone, TokensCommitted

__all__ = ["Answer", "PassDone", "Request", "TokensCommitted", "generate", "make_request", "run"]

"""Many rows at once: what of them shares a forward, and what comes of it. Ids only; text lives at the edge."""

from scumble.engine.driver import Driver
from scumble.engine.engine import Engine
from scumble.engine.row import Event, Failed
from scumble.engine.stats import Stats

__all__ = ["Driver", "Engine", "Event", "Failed", "Stats"]

"""The transformer: layers, attention, experts, cache, and one forward over segments."""

from scumble.model.cache import Cache
from scumble.model.segment import Segment
from scumble.model.transformer import Transformer

__all__ = ["Cache", "Segment", "Transformer"]

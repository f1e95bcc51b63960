"""The transformer: layers, attention, experts, cache, and one forward over segments."""

from scumble.model.cache import Cache
from scumble.model.segment import Segment
from scumble.model.transformer import Transformer, weight_shapes

__all__ = ["Cache", "Segment", "Transformer", "weight_shapes"]

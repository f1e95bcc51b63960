"""Numerical operations with one plain reference each. Tensors in, tensors out; nothing here knows the model."""

from scumble.kernels.reference import softcap
from scumble.kernels.reference import vocab_head as vocab_head_reference
from scumble.kernels.result import VocabResult
from scumble.kernels.tiled import vocab_head

__all__ = ["VocabResult", "softcap", "vocab_head", "vocab_head_reference"]

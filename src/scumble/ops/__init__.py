"""Numerical operations, as one object chosen at load. Tensors in, tensors out; nothing here knows the model."""

from scumble.ops.api import Ops
from scumble.ops.choose import Choice, choose
from scumble.ops.plain_vocab import softcap
from scumble.ops.plain_vocab import vocab_head as vocab_head_reference
from scumble.ops.query import VocabQuery
from scumble.ops.reference import REFERENCE, ReferenceOps
from scumble.ops.result import VocabResult

__all__ = [
    "REFERENCE", "Choice", "Ops", "ReferenceOps", "VocabQuery", "VocabResult", "choose", "softcap",
    "vocab_head_reference",
]  # fmt: skip

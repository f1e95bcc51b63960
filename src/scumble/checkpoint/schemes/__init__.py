"""Weights that other tools stored in few bits: what a folder's configuration says of them, and how they are read."""

from scumble.checkpoint.schemes.assemble import Assembled, Entry, assemble
from scumble.checkpoint.schemes.read import read_entry, scheme_counts
from scumble.checkpoint.schemes.scheme import Quantization, Scheme, parse_quantization

__all__ = [
    "Assembled",
    "Entry",
    "Quantization",
    "Scheme",
    "assemble",
    "parse_quantization",
    "read_entry",
    "scheme_counts",
]

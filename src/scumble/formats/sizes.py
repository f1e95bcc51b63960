"""What weights take in memory, format by format, scales included."""

from __future__ import annotations

import math
from collections.abc import Mapping

from scumble.ops.cpu.vocab import TILE

PLAIN_BYTES = {"float32": 4, "bfloat16": 2}
FORMATS = ("float32", "bfloat16", "int8", "int4")


def weight_bytes(shapes: Mapping[str, tuple[int, ...]], form: str) -> int:
    """Bytes of all parameters, by name and shape, when loaded with dtype=form."""
    return sum(_bytes(name, shape, form) for name, shape in shapes.items())


def _bytes(name: str, shape: tuple[int, ...], form: str) -> int:
    count = math.prod(shape)
    if form in PLAIN_BYTES:
        return count * PLAIN_BYTES[form]
    rows = count // shape[-1]
    if "embed_tokens" in name:  # the table stays; a copy in int8 is for logits, with a scale and a shift a row, and a
        tiles = -(-rows // TILE)  # turned one for soft embeddings, with those of every column in each of its tiles
        return 4 * count + 8 * rows + 8 * tiles * shape[-1]
    if "_proj" not in name:  # norms, the router and other small things
        return 2 * count
    if form == "int8":
        return count + 8 * rows
    return rows * -(-shape[-1] // 32) * 18  # 16 bytes of numbers and a scale for every 32

"""What weights take in memory, format by format, scales included."""

from __future__ import annotations

import math
from collections.abc import Mapping

from scumble.ops.cpu.vocab import TILE

PLAIN_BYTES = {"float32": 4, "bfloat16": 2}
FORMATS = ("float32", "bfloat16", "int8", "int4")  # on a CPU


def weight_bytes(shapes: Mapping[str, tuple[int, ...]], form: str, on_card: bool = False) -> int:
    """Bytes of all parameters, by name and shape, when loaded with dtype=form; on_card: on a graphics card."""
    each = _bytes_on_card if on_card else _bytes
    return sum(each(name, shape, form) for name, shape in shapes.items())


def _bytes_on_card(name: str, shape: tuple[int, ...], form: str) -> int:
    """As ops/triton/layouts.py lays them out; the table, norms and the router stay in bfloat16."""
    count = math.prod(shape)
    if form in PLAIN_BYTES or "_proj" not in name:
        return count * PLAIN_BYTES.get(form, 2)
    rows = count // shape[-1]
    if form == "int4":
        return rows * -(-shape[-1] // 128) * 72  # 64 bytes of numbers and four scales for every 128
    if form == "nvfp4" and len(shape) == 3:
        return rows * (-(-shape[-1] // 16) * 9 + 4)  # experts; other matrices are in fp8
    return count + 4 * rows


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

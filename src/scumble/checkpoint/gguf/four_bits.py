"""ggml's blocks of four bits as weights of four bits: the same numbers, with scales and offsets beside them.

Q4_0: d · (q - 8), in groups of 32. Q4_1: d · (q + m / d). Q4_K: d · s · (q - m · t / (d · s)), in runs of 32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scumble.checkpoint.files import Stored
from scumble.checkpoint.gguf.blocks import BY_NAME, half, halves, runs, sixes
from scumble.checkpoint.raw import read_bytes
from scumble.formats.int4 import Int4Matrix

GROUP = 32


def ggml_four_bits(stored: Stored) -> list[Int4Matrix | None]:
    """A matrix, or every matrix of several; None for other formats."""
    count = stored.shape[0] if len(stored.shape) == 3 else 1
    if stored.dtype not in ("Q4_0", "Q4_1", "Q4_K"):
        return [None] * count
    rows, columns = stored.shape[-2:]
    nbytes, block = stored.nbytes // count, BY_NAME[stored.dtype]
    out: list[Int4Matrix | None] = []
    for index in range(count):
        blocks = read_bytes(stored, index * nbytes, nbytes).view(-1, block.nbytes)
        numbers, scale, zero = _parts(stored.dtype, blocks)
        numbers = numbers.view(rows, columns)
        packed = numbers[:, 0::2] | numbers[:, 1::2] << 4
        groups = columns // GROUP
        zero = None if zero is None else zero.view(rows, groups)
        out.append(Int4Matrix(packed, scale.view(rows, groups), columns, GROUP, zero))
    return out


def _parts(name: str, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Nibbles uint8 [n, size], scales and zero points by group."""
    if name == "Q4_0":
        return halves(blocks[:, 2:]), blocks[:, :2].contiguous().view(torch.float16), None
    if name == "Q4_1":
        scale, least = half(blocks, 0), half(blocks, 2)
        return halves(blocks[:, 4:]), *_raised(scale, least)
    scale, offset = sixes(blocks[:, 4:16])
    scale = half(blocks, 0) * scale[:, :, 0]
    return runs(blocks[:, 16:].contiguous()).flatten(1), *_raised(scale, -half(blocks, 2) * offset[:, :, 0])


def _raised(scale: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """scale · q + least as scale · (q - zero). A scale of 0 becomes tiny, so that the least number can be had."""
    scale = torch.where(scale == 0, 1e-30, scale)
    return scale.contiguous(), (-least / scale).contiguous()

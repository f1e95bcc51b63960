"""ggml's number formats: blocks of 32 or 256 numbers with scales of their own, back to float32.

A block's bytes are read in this order (d and m: float16):

    Q8_0   d, 32 × int8                            d · q
    Q4_0   d, 16 bytes of nibbles                  d · (q - 8)        numbers 0 … 15 in the low halves, then 16 … 31
    Q4_1   d, m, 16 bytes                          d · q + m
    Q5_0   d, 32 fifth bits, 16 bytes              d · (q - 16)
    Q5_1   d, m, 32 fifth bits, 16 bytes           d · q + m
    Q4_K   d, m, 12 bytes of scales, 128 bytes     d · s · q - m · t  by runs of 32, s and t of 6 bits each
    Q5_K   d, m, 12 bytes, 32 bytes of fifth bits, 128 bytes
    Q6_K   128 bytes of low halves, 64 bytes of upper two bits, 16 × int8 scales, d       d · s · (q - 32) by runs of 16
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """A number format: its name, numbers and bytes of a block, and the function of blocks, uint8 [n, nbytes] ->
    float32 [n, size]."""

    name: str
    size: int
    nbytes: int
    decode: Callable[[Tensor], Tensor]


def half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at byte `at` of every block -> float32 [n, 1]."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def halves(data: Tensor) -> Tensor:
    """Nibbles [n, b] -> [n, 2b]: all low halves, then all high ones."""
    return torch.cat((data & 15, data >> 4), dim=1)


def _fifth(data: Tensor) -> Tensor:
    """The 32 bits of 4 bytes [n, 4], each as 0 or 16 -> [n, 32]."""
    return ((data[:, :, None] >> torch.arange(8, dtype=torch.uint8) & 1) << 4).flatten(1)


def _plain(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda blocks: blocks.contiguous().view(dtype).float()


def _q8_0(b: Tensor) -> Tensor:
    return half(b, 0) * b[:, 2:].contiguous().view(torch.int8).float()


def _q4_0(b: Tensor) -> Tensor:
    return half(b, 0) * (halves(b[:, 2:]).float() - 8)


def _q4_1(b: Tensor) -> Tensor:
    return half(b, 0) * halves(b[:, 4:]).float() + half(b, 2)


def _q5_0(b: Tensor) -> Tensor:
    return half(b, 0) * ((halves(b[:, 6:]) | _fifth(b[:, 2:6])).float() - 16)


def _q5_1(b: Tensor) -> Tensor:
    return half(b, 0) * (halves(b[:, 8:]) | _fifth(b[:, 4:8])).float() + half(b, 2)


def sixes(packed: Tensor) -> tuple[Tensor, Tensor]:
    """12 bytes [n, 12] -> eight scales and eight offsets of 6 bits, float32 [n, 8, 1] each.

    The first four lie in the low 6 bits of bytes 0 … 3 (offsets: 4 … 7); of the last four, the low 4 bits are the
    halves of bytes 8 … 11, the upper two those that were left over.
    """
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat((first & 63, rest & 15 | first >> 6 << 4), dim=1)
    offsets = torch.cat((second & 63, rest >> 4 | second >> 6 << 4), dim=1)
    return scales.float()[:, :, None], offsets.float()[:, :, None]


def runs(data: Tensor) -> Tensor:
    """128 bytes [n, 128] -> [n, 8, 32]: of every 32 bytes the low halves are a run, then the high ones."""
    quarters = data.view(-1, 4, 32)
    return torch.stack((quarters & 15, quarters >> 4), dim=2).view(-1, 8, 32)


def _q4_k(b: Tensor) -> Tensor:
    scale, offset = sixes(b[:, 4:16])
    d, m = half(b, 0)[:, :, None], half(b, 2)[:, :, None]
    return (d * scale * runs(b[:, 16:].contiguous()).float() - m * offset).flatten(1)


def _q5_k(b: Tensor) -> Tensor:
    scale, offset = sixes(b[:, 4:16])
    d, m = half(b, 0)[:, :, None], half(b, 2)[:, :, None]
    run = torch.arange(8, dtype=torch.uint8)[:, None]
    fifth = (b[:, None, 16:48] >> run & 1) << 4  # bit j of byte i belongs to number i of run j
    numbers = runs(b[:, 48:].contiguous()) | fifth
    return (d * scale * numbers.float() - m * offset).flatten(1)


def _q6_k(b: Tensor) -> Tensor:
    low, high = b[:, :128].reshape(-1, 2, 64), b[:, 128:192].reshape(-1, 2, 1, 32)
    # Of each half of 128 numbers: runs 0, 1 are the low halves of 64 bytes, runs 2, 3 the high ones.
    low = torch.stack((low & 15, low >> 4), dim=2).view(-1, 2, 4, 32)
    shift = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    numbers = (low | (high >> shift & 3) << 4).float() - 32  # [n, 2, 4, 32]
    scale = b[:, 192:208].contiguous().view(torch.int8).float()[:, :, None]  # [n, 16, 1]
    return (half(b, 208)[:, :, None] * scale * numbers.view(-1, 16, 16)).flatten(1)


BLOCKS = {  # by ggml's number of the type
    0: Block("F32", 1, 4, _plain(torch.float32)),
    1: Block("F16", 1, 2, _plain(torch.float16)),
    30: Block("BF16", 1, 2, _plain(torch.bfloat16)),
    2: Block("Q4_0", 32, 18, _q4_0),
    3: Block("Q4_1", 32, 20, _q4_1),
    6: Block("Q5_0", 32, 22, _q5_0),
    7: Block("Q5_1", 32, 24, _q5_1),
    8: Block("Q8_0", 32, 34, _q8_0),
    12: Block("Q4_K", 256, 144, _q4_k),
    13: Block("Q5_K", 256, 176, _q5_k),
    14: Block("Q6_K", 256, 210, _q6_k),
}
BY_NAME = {block.name: block for block in BLOCKS.values()}
PIECE = 2**16  # blocks decoded at a time


def decode(name: str, data: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor's bytes, uint8 [n], in the format of this name -> float32 of `shape`."""
    block = BY_NAME[name]
    if block.size == 1:
        return block.decode(data[None])[0].view(shape)
    blocks = data.view(-1, block.nbytes)
    out = torch.empty(len(blocks), block.size)
    for begin in range(0, len(blocks), PIECE):
        part = slice(begin, begin + PIECE)
        out[part] = block.decode(blocks[part])
    return out.view(shape)

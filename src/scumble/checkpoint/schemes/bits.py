"""Small numbers in bytes and words, as the tools in the world pack them. Pure functions of tensors.

A nibble is a number 0 … 15. Unless it says otherwise, number 2j lies in the low half of byte j and 2j + 1 in the high
half; little-endian 32-bit words of eight nibbles have the same bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Of a floating-point format, read as a whole number: the bits that are all set in NaN and infinity, and only there.
NOT_FINITE = {
    torch.float64: (torch.int64, 0x7FF0000000000000),
    torch.float32: (torch.int32, 0x7F800000),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
    torch.float8_e5m2: (torch.uint8, 0x7C),
    torch.float8_e4m3fn: (torch.uint8, 0x7F),  # it has no infinity
}
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where, among the nibbles of an AWQ word, numbers 0 … 7 lie


def all_finite(values: Tensor) -> bool:
    """Whether no number is NaN or infinite. On one thread and without a copy in float: a checkpoint has ten thousand
    small tensors of scales, and waking a second thread for each would take longer than to read them."""
    whole, mask = NOT_FINITE[values.dtype]
    return bool(((values.contiguous().view(whole).numpy() & mask) != mask).all())


def nibbles(packed: Tensor, count: int) -> Tensor:
    """uint8 [..., n] or int32 [..., n] -> uint8 [..., count], the first `count` numbers of every row."""
    data = packed.contiguous().view(torch.uint8)
    return torch.stack((data & 15, data >> 4), dim=-1).flatten(-2)[..., :count]


def pack_nibbles(numbers: Tensor) -> Tensor:
    """uint8 [..., 2n], each 0 … 15 -> uint8 [..., n]."""
    return numbers[..., 0::2] | numbers[..., 1::2] << 4


def octets(packed: Tensor, count: int) -> Tensor:
    """int32 [..., n] -> uint8 [..., count]: four numbers 0 … 255 a word."""
    return packed.contiguous().view(torch.uint8)[..., :count]


def word_nibbles_down(words: Tensor) -> Tensor:
    """int32 [n, m], eight numbers of a column a word -> uint8 [8n, m] (GPTQ's weights)."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    return (words[:, None, :] >> shifts[:, None] & 15).to(torch.uint8).flatten(0, 1)


def awq_nibbles(words: Tensor) -> Tensor:
    """int32 [n, m] -> uint8 [n, 8m]: eight numbers of a row a word, in AWQ's order."""
    return nibbles(words, words.shape[-1] * 8).unflatten(-1, (-1, 8))[..., list(AWQ_ORDER)].flatten(-2)


def spread(scale: Tensor, columns: int, group: int) -> Tensor:
    """Scales [rows, groups] -> [rows, columns]: every group's scale for each of its `group` columns."""
    if scale.shape[-1] == 1:
        return scale.expand(scale.shape[0], columns)
    return scale.repeat_interleave(group, dim=-1)[..., :columns]


def spread_blocks(scale: Tensor, rows: int, columns: int, block: tuple[int, int]) -> Tensor:
    """Scales [row blocks, column blocks] -> [rows, columns]."""
    return scale.repeat_interleave(block[0], dim=0)[:rows].repeat_interleave(block[1], dim=1)[:, :columns]

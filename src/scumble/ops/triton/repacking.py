"""Numbers that a checkpoint stores in few bits, laid out for the card. No number changes, but that scales of four-bit
groups without zero points become bfloat16, which is what most tools store.

A four-bit matrix comes as formats/int4.py has it, as plain tensors by name:

    packed [..., N, P/2] uint8, number 2j in the low half of byte j; P: K up to a whole group
    scale [..., N, groups], zero float32 [..., N, groups] (or none: 8), factor float32 [..., 1] (or none: 1)
    value(nibble) is 0 … 15, or E2M1
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scumble.ops.triton.layouts import BLOCK, FP4_GROUP, GROUP, RUN, Int4, Nvfp4


def from_nibbles(
    packed: Tensor, scale: Tensor, size: int, group: int, zero: Tensor | None = None, factor: Tensor | None = None,
    e2m1: bool = False,
) -> Int4:  # fmt: skip
    """size: K. group: numbers that share a scale, a multiple of 32 (of e2m1: 16), or at least K.

    Raises ValueError for groups that do not fit the card's.
    """
    own = FP4_GROUP if e2m1 else GROUP
    if group % own and not (scale.shape[-1] == 1 and group >= size):
        raise ValueError(f"groups of {group} numbers are no multiples of {own}")
    width = -(-size // BLOCK) * BLOCK

    def turned(part: Tensor) -> Tensor:
        """[..., N, groups] -> [..., width / 128, N, 128 / own], zeros beyond the last group."""
        each = max(1, -(-group // own))
        part = part.repeat_interleave(each, -1)[..., : width // own]
        part = F.pad(part, (0, width // own - part.shape[-1]))
        return part.unflatten(-1, (-1, BLOCK // own)).transpose(-3, -2).contiguous()

    rows = packed.shape[:-1]
    scale = scale.float()
    whole = torch.ones(1, device=packed.device) if factor is None else factor.float()
    if not e2m1:
        scale = scale * whole[..., None]
    zeros = None if zero is None else turned(zero.float())
    factors = whole.expand(rows).contiguous() if e2m1 else None
    kept = scale if zero is not None else scale.bfloat16()  # a large zero point would magnify what rounding does
    return Int4(words(packed, width), turned(kept), size, zeros, factors)


def words(packed: Tensor, width: int) -> Tensor:
    """packed [..., N, ·] uint8 -> int32 [..., N, width / 8]: blocks of 128 numbers turned (see `Int4`)."""
    packed = packed[..., : width // 2]
    packed = F.pad(packed, (0, width // 2 - packed.shape[-1]))
    runs = packed.unflatten(-1, (-1, 8, RUN // 2))  # [..., N, blocks, nibble position, byte]
    out = torch.zeros(*runs.shape[:-2], RUN, dtype=torch.int32, device=packed.device)
    for i in range(8):
        run = runs[..., i, :]
        out[..., 0::2] |= (run & 15).to(torch.int32) << (4 * i)
        out[..., 1::2] |= (run >> 4).to(torch.int32) << (4 * i)
    return out.flatten(-2)


def nvfp4_from(packed: Tensor, scale: Tensor, factor: Tensor) -> Nvfp4:
    """What a checkpoint stores, for cards that multiply such numbers: only the factor is spread over rows."""
    return Nvfp4(packed.contiguous(), scale.contiguous(), factor.float().expand(packed.shape[:-1]).contiguous())

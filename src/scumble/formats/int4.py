"""Four-bit weights: groups of 32 numbers share a bfloat16 scale, so a number takes 4.5 bits.

The number of largest magnitude in a group becomes -8; the others are rounded to -8 … 7 of that scale. This is a format
for memory: products are done in bfloat16, on weights that are unpacked just before, one matrix at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scumble.formats.int8 import pieces
from scumble.ops.cpu.native import library

GROUP = 32


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., k] -> packed uint8 [..., groups, 16] and scales bfloat16 [..., groups], groups = ⌈k / 32⌉."""
    groups = -(-x.shape[-1] // GROUP)
    packed = torch.empty(*x.shape[:-1], groups, GROUP // 2, dtype=torch.uint8)
    scale = torch.empty(*x.shape[:-1], groups, dtype=torch.bfloat16)
    rows, numbers, steps = x.reshape(-1, x.shape[-1]), packed.view(-1, groups, GROUP // 2), scale.view(-1, groups)
    for part in pieces(len(rows)):
        numbers[part], steps[part] = _quantize_rows(rows[part])
    return packed, scale


def _quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.float()
    missing = -x.shape[-1] % GROUP
    x = torch.nn.functional.pad(x, (0, missing)).unflatten(-1, (-1, GROUP))
    extreme = x.gather(-1, x.abs().argmax(-1, keepdim=True))[..., 0]
    scale = (extreme / -8).bfloat16()
    step = torch.where(scale == 0, 1.0, scale.float())[..., None]
    q = ((x / step).round_().clamp_(-8, 7) + 8).to(torch.uint8)
    low, high = q.chunk(2, dim=-1)
    return low | high << 4, scale


def unpack(packed: Tensor, scale: Tensor, size: int, native: bool = True) -> Tensor:
    """What `quantize` packed -> bfloat16 [..., size]. native=False: the plain torch version."""
    lib = library() if native else None
    if lib is None:
        q = torch.cat((packed & 15, packed >> 4), dim=-1).float() - 8
        return (q * scale.float()[..., None]).bfloat16().flatten(-2)[..., :size].contiguous()
    out = torch.empty(*scale.shape[:-1], size, dtype=torch.bfloat16)
    lib.scumble_unpack_int4(
        packed.data_ptr(), scale.data_ptr(), out.data_ptr(), scale[..., 0].numel(), size, torch.get_num_threads()
    )
    return out


class Int4Matrix:
    """A weight [m, k], or several [E, m, k]."""

    def __init__(self, weight: Tensor):
        self.size = weight.shape[-1]
        self.packed, self.scale = quantize(weight)

    @classmethod
    def of(cls, packed: Tensor, scale: Tensor, size: int) -> Int4Matrix:
        """What is packed already, `size` numbers a row."""
        found = cls.__new__(cls)
        found.packed, found.scale, found.size = packed, scale, size
        return found

    def state(self) -> dict[str, Tensor]:
        return {"packed": self.packed, "scale": self.scale, "size": torch.tensor(self.size)}

    def __call__(self, index: int | Tensor | None = None) -> Tensor:
        """The matrix in bfloat16; number `index` of several; or some rows of one."""
        if index is None:
            return unpack(self.packed, self.scale, self.size)
        return unpack(self.packed[index], self.scale[index], self.size)

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.scale.nbytes

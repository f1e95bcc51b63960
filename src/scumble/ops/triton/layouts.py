"""Weights as they lie on the card, by format. Made once at load (rounding.py, repacking.py).

A matrix is [..., N, K]: N outputs, K inputs; in front may be a number of experts.

  plain   [..., N, K] bfloat16 (or float32)
  fp8     [..., N, K] float8 e4m3, one float32 scale an output [..., N]; activations get one scale a token
  int8    the same in int8, -127 … 127
  int4    nibbles in words, a scale for every run of inputs; three kinds, see `Int4`
  nvfp4   groups of 16 inputs share a float8 scale, an output has a float32 factor; a number is their product with an
          e2m1 value. Activations are rounded likewise, one factor a token

`arguments` is what a kernel is handed of a weight: numbers, scales of groups, factors of rows. What a format lacks is
the numbers again, which no kernel reads.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

GROUP = 32  # inputs that share a scale in int4
FP4_GROUP = 16  # … of e2m1 numbers
RUN = 16  # inputs a nibble position of a block of words holds: the K of one tensor-core instruction
BLOCK = 8 * RUN  # inputs in a block of RUN words
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)  # by nibble


@dataclass(frozen=True)
class Layout:
    """numbers [..., N, ·] in the format's own way. format: names the kernels' tiles and what activations become.

    kind: what a kernel is told; a format may have several.
    """

    numbers: Tensor
    format: ClassVar[str]

    @property
    def kind(self) -> str:
        return self.format

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.numbers, self.numbers, self.numbers

    @property
    def outputs(self) -> int:
        return self.numbers.shape[-2]

    @property
    def inputs(self) -> int:
        return self.numbers.shape[-1]

    @property
    def tensors(self) -> dict[str, Tensor]:
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in parts.items() if isinstance(part, Tensor)}

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.tensors.values())

    def dequantized(self) -> Tensor:
        """The numbers that products see [..., N, K], in a float format that holds them."""
        raise NotImplementedError


@dataclass(frozen=True)
class Plain(Layout):
    """[..., N, K] in the model's dtype."""

    format = "plain"

    def dequantized(self) -> Tensor:
        return self.numbers


@dataclass(frozen=True)
class Scaled(Layout):
    """numbers [..., N, K] in eight bits, scale [..., N] float32."""

    scale: Tensor

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.numbers, self.numbers, self.scale

    def dequantized(self) -> Tensor:
        return self.numbers.float() * self.scale[..., None]


@dataclass(frozen=True)
class Fp8(Scaled):
    format = "fp8"


@dataclass(frozen=True)
class Int8(Scaled):
    format = "int8"


@dataclass(frozen=True)
class Int4(Layout):
    """numbers [..., N, W/8] int32 words, scale [..., W/128, N, 128/G], where W is K rounded up to 128.

    Nibble i of word 16·b + j is number 128·b + 16·i + j of its row. So nibble i of the 16 words of a block is a run of
    16 neighbours: one shift and mask gives a tile that the tensor core takes, all under one scale a row, no shuffle.
    Scales lie by block, those of neighbouring outputs beside one another: a block's of an output are one load of 64
    bits or two. Those beyond K are 0. Kinds:

      int4    (nibble - 8) · scale                G = 32; scale bfloat16
      zero    (nibble - zero) · scale             G = 32; scale and zero float32, of one shape
      e2m1    E2M1[nibble] · scale · factor       G = 16; scale bfloat16, factor float32 [..., N]
    """

    scale: Tensor
    size: int
    zero: Tensor | None = None
    factor: Tensor | None = None
    format = "int4"

    @property
    def kind(self) -> str:
        return "zero" if self.zero is not None else "int4" if self.factor is None else "e2m1"

    @property
    def group(self) -> int:
        return GROUP if self.factor is None else FP4_GROUP

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        third = self.numbers if self.factor is None else self.factor
        third = third if self.zero is None else self.zero.view(torch.int64)
        return self.numbers, self.scale.view(torch.int64), third

    @property
    def inputs(self) -> int:
        return self.size

    @property
    def width(self) -> int:
        """K rounded up to whole blocks."""
        return self.numbers.shape[-1] * 8

    def dequantized(self) -> Tensor:
        """bfloat16 [..., N, K], each rounded once; of e2m1 float32, since the factor joins after the sum."""
        shifts = torch.arange(0, 32, 4, device=self.numbers.device, dtype=torch.int32)
        words = self.numbers.unflatten(-1, (-1, RUN))  # [..., N, blocks, RUN]
        nibbles = ((words[..., None, :] >> shifts[:, None]) & 15).flatten(-3)  # [..., N, W]
        steps = self._spread(self.scale)
        if self.factor is not None:
            numbers = values(nibbles) * steps * self.factor[..., None]
        else:
            zero = 8.0 if self.zero is None else self._spread(self.zero)
            numbers = ((nibbles.float() - zero) * steps).bfloat16()
        return numbers[..., : self.size]

    def _spread(self, part: Tensor) -> Tensor:
        """One a group [..., W/128, N, 128/G] -> one a number [..., N, W]."""
        return part.transpose(-3, -2).flatten(-2).float().repeat_interleave(self.group, -1)


@dataclass(frozen=True)
class Nvfp4(Layout):
    """numbers [..., N, K/2] uint8 (low nibble first), scale [..., N, K/16] float8_e4m3fn, factor [..., N] float32.

    A number is e2m1(nibble) · scale · factor. Checkpoints have the same layout, with one factor a matrix.
    """

    scale: Tensor
    factor: Tensor
    format = "nvfp4"

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.numbers, self.scale, self.factor

    @property
    def inputs(self) -> int:
        return self.numbers.shape[-1] * 2

    def dequantized(self) -> Tensor:
        return e2m1_numbers(self.numbers, self.scale) * self.factor[..., None]


def e2m1_numbers(packed: Tensor, scale: Tensor) -> Tensor:
    """packed [..., K/2] uint8 and scale [..., K/16] float8 -> e2m1 value · scale, float32 [..., K]."""
    nibbles = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)
    return values(nibbles) * scale.float().repeat_interleave(FP4_GROUP, -1)


def values(nibbles: Tensor) -> Tensor:
    """The e2m1 value of every nibble, float32."""
    return torch.tensor(E2M1, device=nibbles.device)[nibbles.long()]

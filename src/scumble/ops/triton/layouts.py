"""Weights as they lie on the card, by format. Made once at load from what a checkpoint or the CPU's formats hold.

A matrix is [..., N, K]: N outputs, K inputs; in front may be a number of experts.

  plain   [..., N, K] bfloat16 (or float32)
  fp8     [..., N, K] float8 e4m3, one float32 scale an output [..., N]; activations get one scale a token
  int4    groups of 32 inputs share a bfloat16 scale; a number is (nibble - 8) · scale
  nvfp4   groups of 16 inputs share a float8 scale, an output has a float32 factor; a number is their product with an
          e2m1 value. Activations are rounded likewise, one factor a token

`arguments` is what a kernel is handed of a weight: numbers, scales of groups, factors of rows. What a format lacks is
the numbers again, which no kernel reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP = 32  # inputs that share a scale in int4
RUN = 16  # inputs a nibble position of a block of words holds: the K of one tensor-core instruction
BLOCK = 8 * RUN  # inputs in a block of RUN words
FP8_LARGEST = 448.0


@dataclass(frozen=True)
class Plain:
    """[..., N, K] in the model's dtype."""

    weight: Tensor
    format = "plain"

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weight, self.weight, self.weight

    @property
    def outputs(self) -> int:
        return self.weight.shape[-2]

    @property
    def inputs(self) -> int:
        return self.weight.shape[-1]

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def dequantized(self) -> Tensor:
        return self.weight


@dataclass(frozen=True)
class Fp8:
    """weight [..., N, K] float8_e4m3fn, scale [..., N] float32."""

    weight: Tensor
    scale: Tensor
    format = "fp8"

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weight, self.weight, self.scale

    @property
    def outputs(self) -> int:
        return self.weight.shape[-2]

    @property
    def inputs(self) -> int:
        return self.weight.shape[-1]

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.scale.nbytes

    def dequantized(self) -> Tensor:
        """The numbers, float32."""
        return self.weight.float() * self.scale[..., None]


def fp8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., K] -> float8 [..., K] and scales float32 [...]: the largest magnitude of a row becomes 448."""
    largest = x.float().abs().amax(-1)
    scale = torch.where(largest == 0, 1.0, largest / FP8_LARGEST)
    return (x.float() / scale[..., None]).to(torch.float8_e4m3fn), scale


def to_fp8(weight: Tensor) -> Fp8:
    """Round [..., N, K], one scale an output."""
    return Fp8(*fp8_rows(weight))


@dataclass(frozen=True)
class Int4:
    """words [..., N, W/8] int32, scale [..., W/32, N] bfloat16, where W is K rounded up to 128.

    Nibble i of word 16·b + j is number 128·b + 16·i + j of its row. So nibble i of the 16 words of a block is a run of
    16 neighbours: one shift and mask gives a tile that the tensor core takes, all under one scale a row, no shuffle.
    Scales are turned, so that those of neighbouring outputs are neighbours. Nibbles beyond K hold 8, which is 0.
    """

    words: Tensor
    scale: Tensor
    inputs: int
    format = "int4"

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.words, self.scale, self.words

    @property
    def outputs(self) -> int:
        return self.words.shape[-2]

    @property
    def width(self) -> int:
        """K rounded up to whole blocks."""
        return self.words.shape[-1] * 8

    @property
    def nbytes(self) -> int:
        return self.words.nbytes + self.scale.nbytes

    def dequantized(self) -> Tensor:
        """The numbers, bfloat16 [..., N, K], each rounded once."""
        shifts = torch.arange(0, 32, 4, device=self.words.device, dtype=torch.int32)
        words = self.words.unflatten(-1, (-1, RUN))  # [..., N, blocks, RUN]
        nibbles = (words[..., None, :] >> shifts[:, None]) & 15  # [..., N, blocks, 8, RUN]
        numbers = (nibbles.flatten(-3) - 8).float()
        steps = self.scale.transpose(-1, -2).float().repeat_interleave(GROUP, -1)
        return (numbers * steps).bfloat16()[..., : self.inputs]


def int4_from_packed(packed: Tensor, scale: Tensor, size: int) -> Int4:
    """From the CPU's format: packed [..., N, groups, 16] uint8 (low nibbles: a group's first 16 numbers), scale
    [..., N, groups] bfloat16, size = K. No number changes."""
    nibbles = torch.cat((packed & 15, packed >> 4), dim=-1).flatten(-2)  # [..., N, 32 · groups] uint8
    missing = -nibbles.shape[-1] % BLOCK
    nibbles = F.pad(nibbles, (0, missing), value=8).unflatten(-1, (-1, 8, RUN))
    words = torch.zeros(*nibbles.shape[:-2], RUN, dtype=torch.int32, device=packed.device)
    for i in range(8):
        words |= nibbles[..., i, :].to(torch.int32) << (4 * i)
    turned = F.pad(scale, (0, missing // GROUP)).transpose(-1, -2).contiguous()
    return Int4(words.flatten(-2).contiguous(), turned, size)


def to_int4(weight: Tensor) -> Int4:
    """Round [..., N, K]: in each group of 32 the number of largest magnitude becomes -8 of the group's scale."""
    size = weight.shape[-1]
    x = F.pad(weight.float(), (0, -size % GROUP)).unflatten(-1, (-1, GROUP))
    extreme = x.gather(-1, x.abs().argmax(-1, keepdim=True))[..., 0]
    scale = (extreme / -8).bfloat16()
    step = torch.where(scale == 0, 1.0, scale.float())[..., None]
    nibbles = ((x / step).round().clamp(-8, 7) + 8).to(torch.uint8)
    low, high = nibbles.chunk(2, dim=-1)
    return int4_from_packed(low | high << 4, scale, size)


@dataclass(frozen=True)
class Nvfp4:
    """packed [..., N, K/2] uint8 (low nibble first), scale [..., N, K/16] float8_e4m3fn, factor [..., N] float32.

    A number is e2m1(nibble) · scale · factor. Checkpoints have the same layout, with one factor a matrix.
    """

    packed: Tensor
    scale: Tensor
    factor: Tensor
    format = "nvfp4"

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.packed, self.scale, self.factor

    @property
    def outputs(self) -> int:
        return self.packed.shape[-2]

    @property
    def inputs(self) -> int:
        return self.packed.shape[-1] * 2

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.scale.nbytes + self.factor.nbytes

    def dequantized(self) -> Tensor:
        """The numbers, float32 [..., N, K]."""
        return e2m1_numbers(self.packed, self.scale) * self.factor[..., None]


E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def e2m1_numbers(packed: Tensor, scale: Tensor) -> Tensor:
    """packed [..., K/2] uint8 and scale [..., K/16] float8 -> e2m1 value · scale, float32 [..., K]."""
    nibbles = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)
    return E2M1.to(nibbles.device)[nibbles.long()] * scale.float().repeat_interleave(16, -1)


def nvfp4_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x [..., K], K a multiple of 16 -> packed [..., K/2] uint8, scale [..., K/16] float8, factor [...] float32.

    A row's largest magnitude gets the scale 448, a group's largest magnitude the value 6.
    """
    groups = x.float().unflatten(-1, (-1, 16))
    largest = groups.abs().amax(-1)  # [..., K/16]
    whole = largest.amax(-1)
    factor = torch.where(whole == 0, 1.0, whole / (6 * FP8_LARGEST))
    scale = (largest / 6 / factor[..., None]).to(torch.float8_e4m3fn)
    step = scale.float() * factor[..., None]
    nibbles = nearest_e2m1(groups / torch.where(step == 0, 1.0, step)[..., None]).flatten(-2)
    return (nibbles[..., 0::2] | nibbles[..., 1::2] << 4).contiguous(), scale, factor


def to_nvfp4(weight: Tensor) -> Nvfp4:
    """Round [..., N, K]."""
    return Nvfp4(*nvfp4_rows(weight))


def nearest_e2m1(x: Tensor) -> Tensor:
    """The nibble of the nearest e2m1 value, uint8; between two it takes the even one. Beyond ±6: ±6."""
    borders = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], device=x.device)
    size = x.abs()
    # A border itself belongs to the even neighbour: 0.25 -> 0, 0.75 -> 1.0 (code 2), 1.25 -> 1.0, …
    above = (size[..., None] > borders).sum(-1)
    tie_up = ((size[..., None] == borders) & (torch.arange(7, device=x.device) % 2 == 1)).any(-1)
    return ((above + tie_up) | (torch.signbit(x).to(torch.int64) << 3)).to(torch.uint8)


Weight = Plain | Fp8 | Int4 | Nvfp4

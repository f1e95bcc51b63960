"""Float weights and activations rounded to the card's formats, in plain torch, on any device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from scumble.ops.triton.layouts import FP4_GROUP, GROUP, Fp8, Int4, Int8, Layout, Nvfp4
from scumble.ops.triton.repacking import from_nibbles

FP8_LARGEST = 448.0
INT8_LARGEST = 127.0


def fp8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., K] -> float8 [..., K] and scales float32 [...]: the largest magnitude of a row becomes 448."""
    largest = x.float().abs().amax(-1)
    scale = torch.where(largest == 0, 1.0, largest / FP8_LARGEST)
    return (x.float() / scale[..., None]).to(torch.float8_e4m3fn), scale


def int8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., K] -> int8 [..., K] and scales float32 [...]: the largest magnitude of a row becomes 127. A row that
    holds no number or infinity has no number as its scale."""
    x = x.float()
    largest = x.abs().amax(-1)
    scale = torch.where(largest == 0, 1.0, largest / INT8_LARGEST)
    scale = torch.where(largest.isfinite(), scale, float("nan"))
    return (x / scale[..., None]).nan_to_num().round().to(torch.int8), scale


def to_fp8(weight: Tensor) -> Fp8:
    """Round [..., N, K], one scale an output."""
    return Fp8(*fp8_rows(weight))


def to_int8(weight: Tensor) -> Int8:
    """Round [..., N, K], one scale an output."""
    return Int8(*int8_rows(weight))


def to_int4(weight: Tensor) -> Int4:
    """Round [..., N, K]: in each group of 32 the number of largest magnitude becomes -8 of the group's scale."""
    size = weight.shape[-1]
    x = F.pad(weight.float(), (0, -size % GROUP)).unflatten(-1, (-1, GROUP))
    extreme = x.gather(-1, x.abs().argmax(-1, keepdim=True))[..., 0]
    scale = (extreme / -8).bfloat16()
    step = torch.where(scale == 0, 1.0, scale.float())[..., None]
    nibbles = ((x / step).round().clamp(-8, 7) + 8).to(torch.uint8).flatten(-2)
    return from_nibbles(nibbles[..., 0::2] | nibbles[..., 1::2] << 4, scale, size, GROUP)


def nvfp4_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x [..., K], K a multiple of 16 -> packed [..., K/2] uint8, scale [..., K/16] float8, factor [...] float32.

    A row's largest magnitude gets the scale 448, a group's largest magnitude the value 6.
    """
    groups = x.float().unflatten(-1, (-1, FP4_GROUP))
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


ROUNDED: dict[str, Callable[[Tensor], Layout]] = {
    "fp8": to_fp8, "int8": to_int8, "int4": to_int4, "nvfp4": to_nvfp4,
}  # fmt: skip


def rounded(weight: Tensor, format: str) -> Layout:
    """A weight [N, K] or [E, N, K] in a format. Experts one after another: rounding holds float32 copies."""
    make = ROUNDED[format]
    return make(weight) if weight.ndim == 2 else stacked([make(one) for one in weight])


def stacked(matrices: list[Layout]) -> Layout:
    """Matrices of one layout [N, K] as one [E, N, K]."""
    first = matrices[0]
    return replace(first, **{name: torch.stack([one.tensors[name] for one in matrices]) for name in first.tensors})

"""Activations as a product takes them: as they are, or rounded to float8 or int8 (one scale a token) or nvfp4."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from scumble.ops.triton.launch import launch, power_of_two
from scumble.ops.triton.rounding import FP8_LARGEST, INT8_LARGEST, fp8_rows, int8_rows, nvfp4_rows


@dataclass(frozen=True)
class Activations:
    """values [N, K] (nvfp4: [N, K/2] bytes), groups [N, K/16] float8 (nvfp4), factor [N] float32 (fp8, int8, nvfp4),
    and the dtype of the results. What a format lacks is `values` again, which no kernel reads."""

    values: Tensor
    groups: Tensor
    factor: Tensor
    dtype: torch.dtype

    @property
    def rows(self) -> int:
        return self.values.shape[0]

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.values, self.groups, self.factor


@triton.jit
def _round_fp8(x, out, factor, K: tl.constexpr, B: tl.constexpr, LARGEST: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, B)
    value = tl.load(x + row * K + k, mask=k < K, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(value), 0)
    step = tl.where(largest == 0.0, 1.0, tl.div_rn(largest, LARGEST))
    rounded = tl.minimum(tl.maximum(tl.div_rn(value, step), -LARGEST), LARGEST)
    tl.store(out + row * K + k, rounded.to(out.dtype.element_ty), mask=k < K)
    tl.store(factor + row, step)


@triton.jit
def _round_int8(x, out, factor, K: tl.constexpr, B: tl.constexpr, LARGEST: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, B)
    value = tl.load(x + row * K + k, mask=k < K, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(value), 0)
    step = tl.where(largest == 0.0, 1.0, tl.div_rn(largest, LARGEST))
    steps = tl.div_rn(value, step)
    # Halves go to the even neighbour: adding 1.5 · 2²³ leaves no bits behind the point.
    near = (tl.minimum(tl.maximum(steps, -LARGEST), LARGEST) + 12582912.0) - 12582912.0
    tl.store(out + row * K + k, near.to(tl.int8), mask=k < K)
    tl.store(factor + row, step + tl.sum(value - value, 0))  # no number where one of the row is none, or infinite


@triton.jit
def _round_nvfp4(x, out, groups, factor, K: tl.constexpr, G: tl.constexpr, LARGEST: tl.constexpr):
    """One token a program, as [G, 16]; G: groups, rounded up to a power of two."""
    row = tl.program_id(0).to(tl.int64)
    g = tl.arange(0, G)
    k = g[:, None] * 16 + tl.arange(0, 16)[None, :]
    value = tl.load(x + row * K + k, mask=k < K, other=0.0).to(tl.float32)
    size = tl.abs(value)
    largest = tl.max(size, 1)
    whole = tl.max(largest, 0)
    whole = tl.where(whole == 0.0, 1.0, tl.div_rn(whole, 6.0 * LARGEST))
    scale = tl.div_rn(tl.div_rn(largest, 6.0), whole).to(tl.float8e4nv)
    step = scale.to(tl.float32) * whole
    size = tl.div_rn(size, tl.where(step == 0.0, 1.0, step)[:, None])
    # The nearest of 0, ½, 1, 1½, 2, 3, 4, 6: count the borders below; a border itself belongs to the even code.
    code = (size > 0.25).to(tl.int32) + (size >= 0.75).to(tl.int32) + (size > 1.25).to(tl.int32)
    code += (size >= 1.75).to(tl.int32) + (size > 2.5).to(tl.int32) + (size >= 3.5).to(tl.int32)
    code += (size > 5.0).to(tl.int32)
    code |= (value.to(tl.int32, bitcast=True) >> 28) & 8  # the sign
    low, high = tl.split(tl.reshape(code, (G, 8, 2)))
    byte = g[:, None] * 8 + tl.arange(0, 8)[None, :]
    tl.store(out + row * (K // 2) + byte, (low | (high << 4)).to(tl.uint8), mask=byte < K // 2)
    tl.store(groups + row * (K // 16) + g, scale, mask=g < K // 16)
    tl.store(factor + row, whole)


def for_format(x: Tensor, format: str) -> Activations:
    """x [N, K] as weights of `format` want it: rounded for fp8, int8 and nvfp4, as it is for plain and int4."""
    rows, size = x.shape
    factor = torch.empty(rows, dtype=torch.float32, device=x.device)
    if format == "fp8":
        out = torch.empty(rows, size, dtype=torch.float8_e4m3fn, device=x.device)
        launch("round fp8", _round_fp8, (rows,), (x, out, factor), K=size, B=power_of_two(size), LARGEST=FP8_LARGEST)
        return Activations(out, out, factor, x.dtype)
    if format == "int8":
        out = torch.empty(rows, size, dtype=torch.int8, device=x.device)
        launch("round int8", _round_int8, (rows,), (x, out, factor), K=size, B=power_of_two(size), LARGEST=INT8_LARGEST)
        return Activations(out, out, factor, x.dtype)
    if format == "nvfp4":
        out = torch.empty(rows, size // 2, dtype=torch.uint8, device=x.device)
        groups = torch.empty(rows, size // 16, dtype=torch.float8_e4m3fn, device=x.device)
        launch(
            "round nvfp4", _round_nvfp4, (rows,), (x, out, groups, factor), K=size, G=power_of_two(size // 16),
            LARGEST=FP8_LARGEST,
        )  # fmt: skip
        return Activations(out, groups, factor, x.dtype)
    return Activations(x, x, x, x.dtype)


def for_format_reference(x: Tensor, format: str) -> Activations:
    if format in ("fp8", "int8"):
        values, factor = fp8_rows(x) if format == "fp8" else int8_rows(x)
        return Activations(values, values, factor, x.dtype)
    if format == "nvfp4":
        return Activations(*nvfp4_rows(x), x.dtype)
    return Activations(x, x, x, x.dtype)

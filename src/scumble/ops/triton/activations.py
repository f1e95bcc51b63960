"""Activations as a product takes them: as they are, or rounded to float8 or int8 (one scale a token) or nvfp4."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from scumble.ops.triton.launch import launch, power_of_two
from scumble.ops.triton.rounding import FP8_LARGEST, fp8_rows, int8_rows, nvfp4_rows

BY_ROW = ("fp8", "int8")  # formats that have one scale a token


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
def _nothing(value):
    """0; no number where one of a row's numbers [B] is none, or infinite. (A maximum passes over what is no number.)"""
    return tl.sum(value - value, 0)


@triton.jit
def store_rounded(value, out, factor, row, k, K: tl.constexpr, FORMAT: tl.constexpr):
    """A row's numbers [B] float32, 0 beyond K, into out [N, K] in "fp8" or "int8"; its scale into factor [N]."""
    LARGEST = 448.0 if FORMAT == "fp8" else 127.0
    largest = tl.max(tl.abs(value), 0)  # of those that are numbers
    step = tl.where(largest == 0.0, 1.0, tl.div_rn(largest, LARGEST)) + _nothing(value)
    steps = tl.minimum(tl.maximum(tl.div_rn(value, step), -LARGEST), LARGEST)
    if FORMAT == "int8":
        # Halves go to the even neighbour: adding 1.5 · 2²³ leaves no bits behind the point.
        steps = (steps + 12582912.0) - 12582912.0
    tl.store(out + row * K + k, steps.to(out.dtype.element_ty), mask=k < K)
    tl.store(factor + row, step)


@triton.jit
def _round(x, out, factor, K: tl.constexpr, B: tl.constexpr, FORMAT: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, B)
    value = tl.load(x + row * K + k, mask=k < K, other=0.0).to(tl.float32)
    store_rounded(value, out, factor, row, k, K, FORMAT)


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
    whole = tl.where(whole == 0.0, 1.0, tl.div_rn(whole, 6.0 * LARGEST)) + _nothing(tl.reshape(value, (G * 16,)))
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


def unwritten(x: Tensor, format: str) -> Activations:
    """Memory for x [N, K] rounded to fp8 or int8; for "plain" x itself."""
    if format == "plain":
        return Activations(x, x, x, x.dtype)
    dtype = torch.float8_e4m3fn if format == "fp8" else torch.int8
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    return Activations(out, out, torch.empty(x.shape[0], dtype=torch.float32, device=x.device), x.dtype)


def for_format(x: Tensor, format: str) -> Activations:
    """x [N, K] as weights of `format` want it: rounded for fp8, int8 and nvfp4, as it is for plain and int4."""
    rows, size = x.shape
    if format in BY_ROW:
        made = unwritten(x, format)
        arguments = (x, made.values, made.factor)
        launch(f"round {format}", _round, (rows,), arguments, K=size, B=power_of_two(size), FORMAT=format)
        return made
    if format == "nvfp4":
        factor = torch.empty(rows, dtype=torch.float32, device=x.device)
        out = torch.empty(rows, size // 2, dtype=torch.uint8, device=x.device)
        groups = torch.empty(rows, size // 16, dtype=torch.float8_e4m3fn, device=x.device)
        launch(
            "round nvfp4", _round_nvfp4, (rows,), (x, out, groups, factor), K=size, G=power_of_two(size // 16),
            LARGEST=FP8_LARGEST,
        )  # fmt: skip
        return Activations(out, groups, factor, x.dtype)
    return Activations(x, x, x, x.dtype)


def for_format_reference(x: Tensor, format: str) -> Activations:
    if format in BY_ROW:
        values, factor = fp8_rows(x) if format == "fp8" else int8_rows(x)
        return Activations(values, values, factor, x.dtype)
    if format == "nvfp4":
        return Activations(*nvfp4_rows(x), x.dtype)
    return Activations(x, x, x, x.dtype)

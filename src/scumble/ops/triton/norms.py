"""RMSNorm and the chains of norms and sums around it, each in one visit to memory. One row of D numbers a program.

rms(x) = x · (mean(x²) + eps)^-½ · weight        in float32, rounded to x's dtype

What a product takes next can be had in that product's format too (activations.py), so that nothing is read again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scumble.ops.triton.activations import Activations, store_rounded, unwritten
from scumble.ops.triton.launch import launch, power_of_two


@triton.jit
def _scaled(x, eps, D: tl.constexpr):
    """x [B] float32, 0 beyond D, with mean square 1."""
    return x * tl.rsqrt(tl.sum(x * x, 0) / D + eps)


@triton.jit
def _rms(x, weight, column, ok, eps, D: tl.constexpr):
    """x [B] float32, 0 beyond D -> float32 [B]."""
    x = _scaled(x, eps, D)
    return x * tl.load(weight + column, mask=ok, other=0.0).to(tl.float32)


@triton.jit
def _rounded(x, like):
    """x float32 as it is after a visit to memory in the dtype of pointer `like`."""
    return x.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def _store(value, out, rounded, factor, row, column, D: tl.constexpr, FORMAT: tl.constexpr):
    """A row's numbers [B] float32, 0 beyond D, into out [N, D], and in fp8 or int8 into `rounded`, where it is one."""
    stored = value.to(out.dtype.element_ty)
    tl.store(out + row * D + column, stored, mask=column < D)
    if FORMAT == "fp8" or FORMAT == "int8":
        store_rounded(stored.to(tl.float32), rounded, factor, row, column, D, FORMAT)


@triton.jit
def _norm(
    x, weight, out, rounded, factor, eps,
    WEIGHTED: tl.constexpr, FORMAT: tl.constexpr, D: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, B)
    ok = column < D
    value = tl.load(x + row * D + column, mask=ok, other=0.0).to(tl.float32)
    value = _rms(value, weight, column, ok, eps, D) if WEIGHTED else _scaled(value, eps, D)
    _store(value, out, rounded, factor, row, column, D, FORMAT)


def norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """rms(x) over the last axis of x, contiguous; weight [D], or None for 1."""
    return norm_for(x, weight, eps, "plain")[0]


def norm_for(x: Tensor, weight: Tensor | None, eps: float, format: str) -> tuple[Tensor, Activations]:
    """The same, and as a product in that format takes it: "fp8", "int8" or "plain"."""
    size = x.shape[-1]
    out = torch.empty_like(x)
    made = unwritten(out, format)
    arguments = (x, x if weight is None else weight, out, made.values, made.factor, eps)
    grid, weighted = (x.numel() // size,), weight is not None
    launch("norm", _norm, grid, arguments, WEIGHTED=weighted, FORMAT=format, D=size, B=power_of_two(size))
    return out, made


def norm_reference(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    h = x.float()
    h = h * (h.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (h if weight is None else h * weight.float()).to(x.dtype)


@triton.jit
def _attention_tail(
    x, attended, weight, mlp_weight, experts_weight, h_out, mlp_out, mlp_rounded, mlp_factor,
    experts_out, experts_rounded, experts_factor, eps,
    MLP: tl.constexpr, EXPERTS: tl.constexpr, D: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, B)
    ok = column < D
    at = row * D + column
    y = tl.load(attended + at, mask=ok, other=0.0).to(tl.float32)
    y = _rounded(_rms(y, weight, column, ok, eps, D), h_out)
    h = _rounded(tl.load(x + at, mask=ok, other=0.0).to(tl.float32) + y, h_out)
    for_mlp = _rms(h, mlp_weight, column, ok, eps, D)
    for_experts = _rms(h, experts_weight, column, ok, eps, D)
    tl.store(h_out + at, h.to(h_out.dtype.element_ty), mask=ok)
    _store(for_mlp, mlp_out, mlp_rounded, mlp_factor, row, column, D, MLP)
    _store(for_experts, experts_out, experts_rounded, experts_factor, row, column, D, EXPERTS)


def attention_tail(
    x: Tensor, attended: Tensor, weight: Tensor, mlp_weight: Tensor, experts_weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """From attention to the MLP and the experts: h = x + rms(attended), and h normed for each of the two.

    x, attended [N, D]; three norm weights [D] -> h, input of the MLP, input of the experts, each [N, D].
    """
    return attention_tail_for(x, attended, (weight, mlp_weight, experts_weight), eps, ("plain", "plain"))[0]


def attention_tail_for(
    x: Tensor, attended: Tensor, weights: tuple[Tensor, Tensor, Tensor], eps: float, formats: tuple[str, str]
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Activations, Activations]]:
    """The same, and the two inputs as products in those formats take them."""
    rows, size = x.shape
    h, for_mlp, for_experts = out = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
    made = unwritten(for_mlp, formats[0]), unwritten(for_experts, formats[1])
    arguments = (
        x, attended, *weights, h, for_mlp, made[0].values, made[0].factor, for_experts, made[1].values, made[1].factor,
        eps,
    )  # fmt: skip
    mlp, experts = formats
    launch(
        "attention tail", _attention_tail, (rows,), arguments, MLP=mlp, EXPERTS=experts, D=size, B=power_of_two(size)
    )
    return out, made


def attention_tail_reference(
    x: Tensor, attended: Tensor, weight: Tensor, mlp_weight: Tensor, experts_weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    h = x + norm_reference(attended, weight, eps)
    return h, norm_reference(h, mlp_weight, eps), norm_reference(h, experts_weight, eps)


@triton.jit
def _layer_tail(
    h, dense, mixed, dense_weight, mixed_weight, sum_weight, denoise, scale, encode_scale, out, eps,
    D: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, B)
    ok = column < D
    at = row * D + column
    a = tl.load(dense + at, mask=ok, other=0.0).to(tl.float32)
    b = tl.load(mixed + at, mask=ok, other=0.0).to(tl.float32)
    a = _rounded(_rms(a, dense_weight, column, ok, eps, D), out)
    b = _rounded(_rms(b, mixed_weight, column, ok, eps, D), out)
    y = _rounded(_rms(_rounded(a + b, out), sum_weight, column, ok, eps, D), out)
    y = _rounded(tl.load(h + at, mask=ok, other=0.0).to(tl.float32) + y, out)
    factor = tl.where(tl.load(denoise + row) != 0, tl.load(scale).to(tl.float32), tl.load(encode_scale).to(tl.float32))
    tl.store(out + at, (y * factor).to(out.dtype.element_ty), mask=ok)


def layer_tail(
    h: Tensor,
    branches: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor, Tensor],
    denoise: Tensor,
    scales: tuple[Tensor, Tensor],
    eps: float,
) -> Tensor:
    """End of a layer: (h + rms(rms(dense) + rms(mixed))) · layer scalar.

    h and the branches (dense MLP, experts) [N, D]; norm weights [D] of dense, of experts, of their sum;
    denoise [N, 1] bool chooses between the two scalars [1] (denoise, encode).
    """
    rows, size = h.shape
    out = torch.empty_like(h)
    arguments = (h, *branches, *weights, denoise.view(torch.uint8), *scales, out, eps)
    launch("layer tail", _layer_tail, (rows,), arguments, D=size, B=power_of_two(size))
    return out


def layer_tail_reference(
    h: Tensor,
    branches: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor, Tensor],
    denoise: Tensor,
    scales: tuple[Tensor, Tensor],
    eps: float,
) -> Tensor:
    both = norm_reference(branches[0], weights[0], eps) + norm_reference(branches[1], weights[1], eps)
    return (h + norm_reference(both, weights[2], eps)) * torch.where(denoise, *scales)

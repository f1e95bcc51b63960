"""Differentiable operations of mixed-precision training on a CPU: what autocast computes, in fewer and larger steps.

Norms, rotary positions, gates and the loss are chains of small operations that each read and write the whole tensor: so
each chain is one sweep of a native kernel (ops/cpu/src/training.cpp), forward and backward. Products go in blocks (see
products.py); the experts are in experts.py. Products are bfloat16 with float32 sums;
statistics, weights and gradients of weights are float32.

Shapes: N tokens, D hidden, H heads, K head_dim.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from scumble.ops.cpu.native import pointer
from scumble.ops.cpu.training.products import outer, product

LARGEST_CAP = 60.0  # of the soft-cap, for the loss without a maximum: e^60 times a vocabulary is still a float32


# --- linear ---------------------------------------------------------------------------------------------------


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        matrix = weight.bfloat16()
        out = x.new_empty(x.shape[0], weight.shape[0])
        product(x, matrix.T, out)
        ctx.save_for_backward(x, matrix)
        ctx.dtype = weight.dtype
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, matrix = ctx.saved_tensors
        grad = grads[0].contiguous()
        to_x, to_weight = torch.empty_like(x), torch.empty(matrix.shape, dtype=torch.float32)
        product(grad, matrix, to_x)
        outer(grad, x, to_weight)
        return to_x, to_weight.to(ctx.dtype)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [N, D] · weight [M, D]ᵀ -> [N, M] bfloat16."""
    return _Linear.apply(x.to(torch.bfloat16).contiguous(), weight)  # type: ignore[no-any-return]


# --- chains -----------------------------------------------------------------------------------------------------


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lib: ctypes.CDLL, x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
        d = x.shape[-1]
        n = x.numel() // d
        out, inverse = torch.empty(x.shape, dtype=dtype), torch.empty(n)
        lib.scumble_train_norm(
            x.data_ptr(), pointer(weight), out.data_ptr(), inverse.data_ptr(), n, d,
            x.dtype is torch.float32, dtype is torch.float32, eps, torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(x, weight, inverse)
        ctx.lib, ctx.dtype = lib, dtype
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        grad = grads[0].to(ctx.dtype).contiguous()
        to_x, to_weight = torch.empty_like(x), None if weight is None else torch.empty_like(weight)
        ctx.lib.scumble_train_norm_back(
            grad.data_ptr(), x.data_ptr(), pointer(weight), inverse.data_ptr(), to_x.data_ptr(), pointer(to_weight),
            inverse.numel(), x.shape[-1], x.dtype is torch.float32, ctx.dtype is torch.float32, torch.get_num_threads(),
        )  # fmt: skip
        return None, to_x, to_weight, None, None


def norm(lib: ctypes.CDLL, x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    """RMSNorm over the last axis of x, bfloat16 or float32, in `dtype`, one of those."""
    return _Norm.apply(lib, x.contiguous(), weight, eps, dtype)  # type: ignore[no-any-return]


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, lib: ctypes.CDLL, x: Tensor, y: Tensor, weight: Tensor, scale: Tensor | None, eps: float
    ) -> Tensor:
        n, d = x.shape
        out, inverse = torch.empty_like(x), torch.empty(n)
        lib.scumble_train_add_norm(
            x.data_ptr(), y.data_ptr(), weight.data_ptr(), pointer(scale), out.data_ptr(), inverse.data_ptr(), n, d,
            eps, torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(y, weight, scale, inverse)
        ctx.lib = lib
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y, weight, scale, inverse = ctx.saved_tensors
        grad = grads[0].contiguous()
        to_x, to_y, to_weight = torch.empty_like(grad), torch.empty_like(y), torch.empty_like(weight)
        ctx.lib.scumble_train_add_norm_back(
            grad.data_ptr(), y.data_ptr(), weight.data_ptr(), pointer(scale), inverse.data_ptr(), to_x.data_ptr(),
            to_y.data_ptr(), to_weight.data_ptr(), *y.shape, torch.get_num_threads(),
        )  # fmt: skip
        return None, to_x, to_y, to_weight, None, None


def add_norm(lib: ctypes.CDLL, x: Tensor, y: Tensor, weight: Tensor, eps: float, scale: Tensor | None = None) -> Tensor:
    """(x + norm(y) · weight) · scale, x [N, D] float32, y [N, D] bfloat16, scale [N, 1] float32, a constant."""
    return _AddNorm.apply(lib, x.contiguous(), y.contiguous(), weight, scale, eps)  # type: ignore[no-any-return]


class _NormRope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lib: ctypes.CDLL, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        n, heads, k = x.shape
        out, inverse = torch.empty_like(x), torch.empty(n * heads)
        lib.scumble_train_norm_rope(
            x.data_ptr(), weight.data_ptr(), cos.data_ptr(), sin.data_ptr(), out.data_ptr(), inverse.data_ptr(),
            n, heads, k, eps, torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(x, weight, cos, sin, inverse)
        ctx.lib = lib
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, cos, sin, inverse = ctx.saved_tensors
        grad = grads[0].to(x.dtype).contiguous()
        to_x, to_weight = torch.empty_like(x), torch.empty_like(weight)
        ctx.lib.scumble_train_norm_rope_back(
            grad.data_ptr(), x.data_ptr(), weight.data_ptr(), cos.data_ptr(), sin.data_ptr(), inverse.data_ptr(),
            to_x.data_ptr(), to_weight.data_ptr(), *x.shape, torch.get_num_threads(),
        )  # fmt: skip
        return None, to_x, to_weight, None, None, None


def norm_rope(lib: ctypes.CDLL, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """RMSNorm of every head of x [N, H, K] bfloat16, then rotary positions; cos and sin [N, 1, K] float32, K even."""
    return _NormRope.apply(lib, x.contiguous(), weight, cos, sin, eps)  # type: ignore[no-any-return]


class _Geglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lib: ctypes.CDLL, gate: Tensor, up: Tensor) -> Tensor:
        out = torch.empty_like(gate)
        lib.scumble_train_geglu(
            gate.data_ptr(), up.data_ptr(), out.data_ptr(), *gate.shape, gate.shape[1], torch.get_num_threads()
        )
        ctx.save_for_backward(gate, up)
        ctx.lib = lib
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad = grads[0].contiguous()
        to_gate, to_up = torch.empty_like(gate), torch.empty_like(up)
        ctx.lib.scumble_train_geglu_back(
            grad.data_ptr(), gate.data_ptr(), up.data_ptr(), to_gate.data_ptr(), to_up.data_ptr(), *gate.shape,
            gate.shape[1], torch.get_num_threads(),
        )  # fmt: skip
        return None, to_gate, to_up


def geglu(lib: ctypes.CDLL, gate: Tensor, up: Tensor) -> Tensor:
    """gelu_tanh(gate) · up, both [N, F] bfloat16."""
    return _Geglu.apply(lib, gate.contiguous(), up.contiguous())  # type: ignore[no-any-return]


# --- attention --------------------------------------------------------------------------------------------------


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lib: ctypes.CDLL, queries: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
        (rows, tokens, heads, k), (_, seen, groups, _) = queries.shape, keys.shape
        ctx.lib, ctx.sizes = lib, (rows, tokens, seen, heads, groups, k, window)
        out = torch.empty_like(queries)
        lib.scumble_train_attention(
            queries.data_ptr(), keys.data_ptr(), values.data_ptr(), out.data_ptr(), *ctx.sizes, torch.get_num_threads()
        )
        ctx.save_for_backward(queries, keys, values)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values = ctx.saved_tensors
        grad = grads[0].contiguous()
        to_all = [torch.empty_like(x) for x in (queries, keys, values)]
        ctx.lib.scumble_train_attention_back(
            grad.data_ptr(), queries.data_ptr(), keys.data_ptr(), values.data_ptr(), *(x.data_ptr() for x in to_all),
            *ctx.sizes, torch.get_num_threads(),
        )  # fmt: skip
        return None, *to_all, None


def attention(lib: ctypes.CDLL, queries: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
    """queries [B, T, H, K] over keys and values [B, S, G, K], all bfloat16, K even -> [B, T, H, K]. Scores as they are.

    window 0: all see all. Otherwise causal: token t, the (S - T + t)-th, sees itself and the window - 1 before it.
    """
    queries, keys, values = queries.contiguous(), keys.contiguous(), values.contiguous()
    return _Attention.apply(lib, queries, keys, values, window)  # type: ignore[no-any-return]


# --- loss -------------------------------------------------------------------------------------------------------


def cross_entropy(lib: ctypes.CDLL, logits: Tensor, targets: Tensor, weights: Tensor, cap: float) -> Tensor:
    """Losses [n] in nats of logits [n, V] bfloat16 before the soft-cap, not weighted and 0 where weights [n] are 0; the
    logits become the gradient of Σ weights · losses. cap: 0 < cap ≤ LARGEST_CAP."""
    n, v = logits.shape
    losses, room = torch.empty(n), torch.empty(torch.get_num_threads(), v)
    lib.scumble_train_cross_entropy(
        logits.data_ptr(), targets.data_ptr(), weights.data_ptr(), losses.data_ptr(), room.data_ptr(), n, v, cap,
        torch.get_num_threads(),
    )  # fmt: skip
    return losses

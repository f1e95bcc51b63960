"""Differentiable operations of mixed-precision training on a CPU: what autocast computes, in fewer and larger steps.

Two things make the plain torch path slow there. A matrix library prepares a kernel for every new shape, which takes
longer than a small product itself, and batches of texts never have the same shape twice: so rows are multiplied in
blocks of a few fixed sizes. And norms, rotary positions, gates and the loss are chains of small operations that each
read and write the whole tensor: so each chain is one sweep of a native kernel (kernels/cpu/training.cpp), forward and
backward. Products are bfloat16 with float32 sums; statistics, weights and gradients of weights are float32.

Shapes: N tokens, D hidden, H heads, K head_dim, E experts, k experts a token, F expert width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from scumble.kernels.fused import address
from scumble.kernels.native import library

SIZES = (1024, 768, 512, 384, 256, 192, 128, 64)  # rows of a block: its operands stay in the cache
LEAST_ROWS = SIZES[-1]  # a shorter rest is filled up with zeros
LARGEST_CAP = 60.0  # of the soft-cap, for the loss without a maximum: e^60 times a vocabulary is still a float32


def serving(x: Tensor) -> ctypes.CDLL | None:
    """The native kernels where a tensor on the CPU takes part in bfloat16 autocast; else None: torch has to serve."""
    if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return None
    if torch.get_autocast_dtype("cpu") is not torch.bfloat16 or x.dtype not in (torch.bfloat16, torch.float32):
        return None
    return library()


# --- products ---------------------------------------------------------------------------------------------------


def blocks(rows: int) -> Iterator[tuple[int, int]]:
    """`rows` cut into the largest of SIZES that still fits, again and again, and what is left: (begin, end) of each."""
    begin = 0
    for size in SIZES:
        while rows - begin >= size:
            yield begin, begin + size
            begin += size
    if begin < rows:
        yield begin, rows


def product(x: Tensor, matrix: Tensor, out: Tensor) -> None:
    """out [N, M] = x [N, K] · matrix [K, M], all bfloat16."""
    for begin, end in blocks(x.shape[0]):
        if end - begin >= LEAST_ROWS:
            torch.mm(x[begin:end], matrix, out=out[begin:end])
        else:
            out[begin:end] = (_filled(x[begin:end]) @ matrix)[: end - begin]


def outer(left: Tensor, right: Tensor, out: Tensor) -> None:
    """out [M, K] float32 = leftᵀ · right, left [N, M] and right [N, K] bfloat16."""
    out.zero_()
    for begin, end in blocks(left.shape[0]):
        a, b = left[begin:end], right[begin:end]
        if end - begin < LEAST_ROWS:
            a, b = _filled(a), _filled(b)
        out += a.T @ b


def _filled(rows: Tensor) -> Tensor:
    full = rows.new_zeros(LEAST_ROWS, rows.shape[1])
    full[: rows.shape[0]] = rows
    return full


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
            x.data_ptr(), address(weight), out.data_ptr(), inverse.data_ptr(), n, d,
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
            grad.data_ptr(), x.data_ptr(), address(weight), inverse.data_ptr(), to_x.data_ptr(), address(to_weight),
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
            x.data_ptr(), y.data_ptr(), weight.data_ptr(), address(scale), out.data_ptr(), inverse.data_ptr(), n, d,
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
            grad.data_ptr(), y.data_ptr(), weight.data_ptr(), address(scale), inverse.data_ptr(), to_x.data_ptr(),
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


# --- experts ----------------------------------------------------------------------------------------------------


class _Experts(torch.autograd.Function):
    """Every expert's tokens lie in one run of places that begins at a multiple of LEAST_ROWS; places between are zeros,
    and so is all that is made of them."""

    @staticmethod
    def forward(
        ctx: Any, lib: ctypes.CDLL, x: Tensor, weights: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor
    ) -> Tensor:
        (n, size), k, (count, _, width), threads = x.shape, chosen.shape[1], down.shape, torch.get_num_threads()
        up_matrix, down_matrix = gate_up.bfloat16(), down.bfloat16()
        starts, place = torch.empty(count + 1, dtype=torch.int64), torch.empty(n * k, dtype=torch.int64)
        lib.scumble_train_route(chosen.data_ptr(), n * k, count, LEAST_ROWS, starts.data_ptr(), place.data_ptr())
        runs = starts.tolist()
        inputs = x.new_zeros(runs[-1], size)
        lib.scumble_train_scatter(x.data_ptr(), None, place.data_ptr(), inputs.data_ptr(), n, k, size, threads)
        gates = x.new_empty(runs[-1], 2 * width)
        inner, outputs = x.new_empty(runs[-1], width), x.new_empty(runs[-1], size)
        for expert, part in _runs(runs):
            product(inputs[part], up_matrix[expert].T, gates[part])
        lib.scumble_train_geglu(
            gates.data_ptr(), gates[:, width:].data_ptr(), inner.data_ptr(), runs[-1], width, 2 * width, threads
        )
        for expert, part in _runs(runs):
            product(inner[part], down_matrix[expert].T, outputs[part])
        out = torch.empty_like(x)
        lib.scumble_train_gather(
            outputs.data_ptr(), weights.data_ptr(), place.data_ptr(), out.data_ptr(), n, k, size, threads
        )
        ctx.save_for_backward(weights, place, inputs, gates, inner, outputs, up_matrix, down_matrix)
        ctx.lib, ctx.runs, ctx.dtypes = lib, runs, (gate_up.dtype, down.dtype)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weights, place, inputs, gates, inner, outputs, up_matrix, down_matrix = ctx.saved_tensors
        lib, runs, grad, threads = ctx.lib, ctx.runs, grads[0].contiguous(), torch.get_num_threads()
        (n, k), size, width = weights.shape, inputs.shape[1], inner.shape[1]
        to_weights = torch.empty_like(weights)
        lib.scumble_train_gather_dots(
            grad.data_ptr(), outputs.data_ptr(), place.data_ptr(), to_weights.data_ptr(), n, k, size, threads
        )
        to_outputs = torch.zeros_like(outputs)
        lib.scumble_train_scatter(
            grad.data_ptr(), weights.data_ptr(), place.data_ptr(), to_outputs.data_ptr(), n, k, size, threads
        )
        to_inner, to_down = torch.empty_like(inner), torch.zeros(down_matrix.shape)
        for expert, part in _runs(runs):
            product(to_outputs[part], down_matrix[expert], to_inner[part])
            outer(to_outputs[part], inner[part], to_down[expert])
        to_gates = torch.empty_like(gates)
        lib.scumble_train_geglu_back(
            to_inner.data_ptr(), gates.data_ptr(), gates[:, width:].data_ptr(), to_gates.data_ptr(),
            to_gates[:, width:].data_ptr(), runs[-1], width, 2 * width, threads,
        )  # fmt: skip
        to_inputs, to_up = torch.empty_like(inputs), torch.zeros(up_matrix.shape)
        for expert, part in _runs(runs):
            product(to_gates[part], up_matrix[expert], to_inputs[part])
            outer(to_gates[part], inputs[part], to_up[expert])
        to_x = grad.new_empty(n, size)
        lib.scumble_train_gather(to_inputs.data_ptr(), None, place.data_ptr(), to_x.data_ptr(), n, k, size, threads)
        return None, to_x, to_weights, None, to_up.to(ctx.dtypes[0]), to_down.to(ctx.dtypes[1])


def _runs(starts: list[int]) -> Iterator[tuple[int, slice]]:
    for expert, (begin, end) in enumerate(pairwise(starts)):
        if begin < end:
            yield expert, slice(begin, end)


def experts(lib: ctypes.CDLL, x: Tensor, weights: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """x [N, D], weights float32 and chosen int64 [N, k], gate_up [E, 2F, D], down [E, D, F] -> [N, D] bfloat16."""
    x = x.to(torch.bfloat16).contiguous()
    return _Experts.apply(lib, x, weights.contiguous(), chosen.contiguous(), gate_up, down)  # type: ignore[no-any-return]


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

"""What the native kernels offer, as functions of tensors. Each says when it may serve; the caller keeps the reference.

They serve bfloat16 on the CPU where no gradients are recorded, so training and float32 always take the torch path.
Shapes: N tokens, D hidden, H heads, K head_dim, E experts, k experts a token, F expert width.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from scumble.kernels.native import library

FEW_ROWS = 4  # of a linear layer, up to which it runs at memory speed
PACKED_ROWS = 16  # query rows a key head, from which packing keys and values pays


def serving(x: Tensor, *others: Tensor | None) -> ctypes.CDLL | None:
    """The kernels, where they may serve these tensors; else None, and torch has to."""
    if x.dtype is not torch.bfloat16 or torch.is_grad_enabled() or x.device.type != "cpu" or not x.is_contiguous():
        return None
    for other in others:
        if other is not None and (other.dtype is not torch.bfloat16 or not other.is_contiguous()):
            return None
    return library()


def address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def rms_norm(lib: ctypes.CDLL, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMSNorm over the last axis."""
    size = x.shape[-1]
    out = torch.empty_like(x)
    rows = x.numel() // size
    lib.scumble_rms_norm(x.data_ptr(), address(weight), out.data_ptr(), rows, size, size, eps, torch.get_num_threads())
    return out


def norm_rope(lib: ctypes.CDLL, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """RMSNorm of every head of x [N, H, K], then rotary positions; cos and sin [N, 1, K]."""
    out = torch.empty_like(x)
    lib.scumble_norm_rope(
        x.data_ptr(), weight.data_ptr(), cos.data_ptr(), sin.data_ptr(), out.data_ptr(), *x.shape, eps,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def attention_tail(
    lib: ctypes.CDLL, x: Tensor, y: Tensor, weight: Tensor, first: Tensor, second: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """h = x + norm(y)·weight [N, D], norm(h)·first, norm(h)·second."""
    h, one, two = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
    lib.scumble_attention_tail(
        x.data_ptr(), y.data_ptr(), weight.data_ptr(), first.data_ptr(), second.data_ptr(),
        h.data_ptr(), one.data_ptr(), two.data_ptr(), *x.shape, eps, torch.get_num_threads(),
    )  # fmt: skip
    return h, one, two


def layer_tail(
    lib: ctypes.CDLL, h: Tensor, branches: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor, Tensor],
    denoise: Tensor, scalars: tuple[Tensor, Tensor], eps: float,
) -> Tensor:  # fmt: skip
    """(h + norm(norm(dense)·w₁ + norm(mixed)·w₂)·w₃) · scalar, the scalar by `denoise` [N, 1] bool."""
    out = torch.empty_like(h)
    lib.scumble_layer_tail(
        h.data_ptr(), *map(address, branches), *map(address, weights), denoise.data_ptr(), *map(address, scalars),
        out.data_ptr(), *h.shape, eps, torch.get_num_threads(),
    )  # fmt: skip
    return out


def geglu(lib: ctypes.CDLL, gate: Tensor, up: Tensor) -> Tensor:
    out = torch.empty_like(gate)
    lib.scumble_geglu(gate.data_ptr(), up.data_ptr(), out.data_ptr(), gate.numel(), torch.get_num_threads())
    return out


def attention(lib: ctypes.CDLL, queries: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
    """queries [n, H, K] over keys and values [G, S, K] (equal strides, rows contiguous) -> [n, H, K].

    window 0: all see all. Otherwise the queries are the last n of the S tokens, and each sees itself and the
    window - 1 tokens before it.
    """
    (n, heads, dim), (groups, seen, _) = queries.shape, keys.shape
    out = torch.empty_like(queries)
    if n * heads // groups < PACKED_ROWS:
        room, kernel = torch.empty(torch.get_num_threads() * seen), lib.scumble_attention_few
    else:
        panels = -(-seen // 64) * 64 * (dim // 2) + -(-dim // 64) * 64 * ((seen + 1) // 2)
        room, kernel = torch.empty(groups * panels, dtype=torch.int32), lib.scumble_attention
    kernel(
        queries.data_ptr(), keys.data_ptr(), values.data_ptr(), out.data_ptr(), room.data_ptr(),
        n, heads, groups, dim, seen, keys.stride(0), window, torch.get_num_threads(),
    )  # fmt: skip
    return out


def router(
    lib: ctypes.CDLL, h: Tensor, scale: Tensor, proj: Tensor, per_expert: Tensor, k: int, eps: float
) -> tuple[Tensor, Tensor]:
    """h [N, D], proj [E, D] -> weights [N, k] float32, expert ids [N, k]."""
    n, size = h.shape
    scores = torch.empty(n, proj.shape[0], dtype=torch.float32)
    weights = torch.empty(n, k, dtype=torch.float32)
    chosen = torch.empty(n, k, dtype=torch.int64)
    lib.scumble_router(
        h.data_ptr(), scale.data_ptr(), proj.data_ptr(), per_expert.data_ptr(), scores.data_ptr(), weights.data_ptr(),
        chosen.data_ptr(), n, size, proj.shape[0], k, eps, torch.get_num_threads(),
    )  # fmt: skip
    return weights, chosen


def experts(lib: ctypes.CDLL, x: Tensor, weights: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """x [N, D], weights float32 and chosen int64 [N, k], gate_up [E, 2F, D], down [E, D, F] -> [N, D]. D, F even."""
    (n, size), k, (count, _, width) = x.shape, chosen.shape[1], down.shape
    slots, out = torch.empty(n * k, size, dtype=x.dtype), torch.empty_like(x)
    lib.scumble_experts(
        x.data_ptr(), weights.data_ptr(), chosen.data_ptr(), gate_up.data_ptr(), down.data_ptr(), slots.data_ptr(),
        out.data_ptr(), n, k, count, size, width, torch.get_num_threads(),
    )  # fmt: skip
    return out


def few_rows(lib: ctypes.CDLL, x: Tensor, weight: Tensor) -> Tensor:
    """x [N ≤ 4, D] · weight [M, D]ᵀ at memory speed."""
    out = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype)
    lib.scumble_few_rows(
        x.data_ptr(), weight.data_ptr(), out.data_ptr(), x.shape[0], x.shape[1], weight.shape[0],
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [N, D] · weight [M, D]ᵀ -> [N, M], by whatever is fastest for that many rows."""
    if x.shape[0] <= FEW_ROWS and x.ndim == 2 and (lib := serving(x, weight)) is not None:
        return few_rows(lib, x, weight)
    return torch.nn.functional.linear(x, weight)

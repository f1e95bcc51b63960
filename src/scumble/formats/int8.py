"""Products with int8 weights: one scale an output channel, and activations quantized on the way, one scale a token.

    x[n, k] ≈ s_n · q_nk,  w[m, k] ≈ t_m · p_mk,  both symmetric in -127 … 127;  x · wᵀ ≈ s_n · t_m · Σ_k q_nk · p_mk

The sum is exact in integers, so the native kernel and the plain torch version differ only in float32 rounding of two
multiplications. Packed for the kernel or plain for torch, the weights are kept once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import torch
from torch import Tensor

from scumble.ops.cpu.native import library

PANEL = 64  # outputs packed together, as in cpu/gemm.h
PIECE = 2048
EXACT_K = 1024  # products of two int8 numbers that float32 sums without rounding: 1024 · 127² < 2²⁴


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., k] -> int8 of the same shape, and scales [...] float32. The largest magnitude of a row becomes 127."""
    q, scales = torch.empty(x.shape, dtype=torch.int8), torch.empty(x.shape[:-1])
    rows, numbers, steps = x.reshape(-1, x.shape[-1]), q.view(-1, x.shape[-1]), scales.view(-1)
    for part in pieces(len(rows)):
        numbers[part], steps[part] = _quantize_rows(rows[part])
    return q, scales


def pieces(rows: int) -> Iterator[slice]:
    """Some thousand rows at a time: the float32 copies that quantizing makes stay small."""
    return (slice(start, start + PIECE) for start in range(0, rows, PIECE))


def _quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.float()
    most = x.abs().amax(-1, keepdim=True)
    scale = torch.where(most > 0, most / 127, 1.0)
    lost = ~torch.isfinite(most)  # NaN or infinity in a row: its scale is NaN, and so is every product with it
    scale = torch.where(lost, float("nan"), scale)
    q = (x * (1 / scale)).round_().clamp_(-127, 127).masked_fill_(lost, 0.0).to(torch.int8)
    return q, scale[..., 0]


def integer_product(q: Tensor, weight: Tensor) -> Tensor:
    """int8 [n, k] · int8 [m, k]ᵀ -> float32 [n, m], exact up to the last rounding to float32."""
    total = torch.zeros(q.shape[0], weight.shape[0], dtype=torch.float64)
    for start in range(0, q.shape[1], EXACT_K):
        part = slice(start, start + EXACT_K)
        total += q[:, part].float() @ weight[:, part].float().T
    return total.float()


class Int8Matrix:
    """A weight [m, k] in int8, or several of equal shape one behind the other. Made from a float tensor or from int8.

    packed: lay the weight out for the native kernels; None: where they are there and k is a multiple of 4.
    """

    def __init__(self, weight: Tensor, scale: Tensor | None = None, packed: bool | None = None):
        if scale is None:
            weight, scale = quantize(weight)
        self.rows, self.size = weight.shape
        self.lib = library() if packed is not False and self.size % 4 == 0 else None
        self.weight: Tensor | None = None
        if self.lib is None:
            self.weight, self.scale = weight, scale
            return
        padded = -(-self.rows // PANEL) * PANEL
        self.panels = torch.empty(padded // PANEL, self.size // 4, PANEL, dtype=torch.int32)
        self.shift = torch.zeros(padded, dtype=torch.int32)
        self.scale = torch.zeros(padded)
        self.scale[: self.rows] = scale
        self.base = (self.panels.data_ptr(), self.shift.data_ptr(), self.scale.data_ptr())
        weight = weight.contiguous()
        self.lib.scumble_pack_int8(
            weight.data_ptr(), self.panels.data_ptr(), self.shift.data_ptr(), self.rows, self.size
        )

    def __deepcopy__(self, memo: object) -> Int8Matrix:
        return self  # it never changes, and its addresses are those of its own tensors

    @property
    def nbytes(self) -> int:
        tensors = (self.panels, self.shift, self.scale) if self.weight is None else (self.weight, self.scale)
        return sum(tensor.nbytes for tensor in tensors)

    def rounded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [n, k] as the product takes it: numbers (shifted by 128 to uint8 for the kernels) and scales [n]."""
        if self.lib is None or x.dtype is not torch.bfloat16:
            q, scale = quantize(x)
            return (q if self.lib is None else (q.to(torch.int16) + 128).to(torch.uint8)), scale
        x = x.contiguous()
        q, scale = torch.empty(x.shape, dtype=torch.uint8), torch.empty(x.shape[0])
        self.lib.scumble_quantize_rows(x.data_ptr(), q.data_ptr(), scale.data_ptr(), *x.shape, torch.get_num_threads())
        return q, scale

    def product(self, q: Tensor, scale: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """What `rounded` gave times rows first … last - 1 of the weight -> bfloat16 [n, last - first]."""
        last = self.rows if last is None else last
        if self.lib is None:
            assert self.weight is not None
            sums = integer_product(q, self.weight[first:last])
            return (sums * (self.scale[first:last] * scale[:, None])).bfloat16()
        start = first // PANEL * PANEL
        out = torch.empty(q.shape[0], last - start, dtype=torch.bfloat16)
        address = self.addresses(start)
        self.lib.scumble_linear_int8(
            q.data_ptr(), scale.data_ptr(), *address, out.data_ptr(), q.shape[0], self.size, last - start,
            torch.get_num_threads(),
        )  # fmt: skip
        return out if start == first else out[:, first - start :]

    def plain(self) -> tuple[Tensor, Tensor]:
        """Numbers [m, k] int8 and scales [m] float32, as they can be saved."""
        if self.weight is not None:
            return self.weight, self.scale
        lying = self.panels.transpose(1, 2).contiguous().view(torch.int8).view(-1, self.size)
        return lying[: self.rows].contiguous(), self.scale[: self.rows].clone()

    def addresses(self, start: int = 0) -> tuple[int, int, int]:
        """Of panels, shifts and scales, from row `start` on, a multiple of 64. Every number takes 4 bytes."""
        panels, shift, scale = self.base
        return panels + start * self.size, shift + 4 * start, scale + 4 * start

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, k] -> [n, m] in x's dtype."""
        if self.lib is not None and x.dtype is torch.bfloat16 and x.is_contiguous():
            n = x.shape[0]
            q, scale = torch.empty(x.shape, dtype=torch.uint8), torch.empty(n)
            out = torch.empty(n, self.rows, dtype=torch.bfloat16)
            self.lib.scumble_quantized_linear(
                x.data_ptr(), q.data_ptr(), scale.data_ptr(), *self.base, out.data_ptr(), n, self.size, self.rows,
                torch.get_num_threads(),
            )  # fmt: skip
            return out
        return self.product(*self.rounded(x)).to(x.dtype)


def experts(
    lib: ctypes.CDLL, x: Tensor, weights: Tensor, chosen: Tensor, up: Int8Matrix, down: Int8Matrix, count: int
) -> Tensor:
    """x [N, D] bfloat16, weights float32 and chosen int64 [N, k]; packed as formats/ packs them -> [N, D]."""
    (n, size), k, width = x.shape, chosen.shape[1], down.size
    slots, out = torch.empty(n * k, size, dtype=x.dtype), torch.empty_like(x)
    q, scale = torch.empty(n, size, dtype=torch.uint8), torch.empty(n)
    lib.scumble_experts_int8(
        x.data_ptr(), weights.data_ptr(), chosen.data_ptr(), *up.addresses(), *down.addresses(), slots.data_ptr(),
        q.data_ptr(), scale.data_ptr(), out.data_ptr(), n, k, count, size, width, torch.get_num_threads(),
    )  # fmt: skip
    return out

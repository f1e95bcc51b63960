"""Weights of four bits a number, as checkpoints store them: nibbles row by row, scales by groups of a row.

    w[m, k] = factor · scale[m, group of k] · (value(nibble[m, k]) - zero[m, group of k])

`value` is 0 … 15 (int4, GPTQ, AWQ) or E2M1 (NVFP4). Products take int8 activations, one scale a token, as int8 does:

    x · wᵀ ≈ s_n · Σ_groups scale · (Σ_k value · q_nk - zero · Σ_k q_nk)

exact in integers inside a group. The native kernels read the weight as it lies, so it may stay mapped from its file; a
row's result does not depend on how many rows there are. Rounding here (`quantize`) gives the number of largest
magnitude in a group the value -8.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from scumble.formats import int8
from scumble.formats.int8 import pieces
from scumble.ops.cpu.native import FourExperts, FourWeight, library, pointer

GROUP = 32
SCALES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2, torch.float8_e4m3fn: 3}  # as in four_bit.h
# E2M1: a sign, two bits of exponent, one of mantissa. By nibble.
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


@dataclass(frozen=True)
class Int4Matrix:
    """A weight [rows, size].

    packed: uint8 [rows, padded / 2], number 2j in the low half of byte j; padded: size up to a whole group.
    scale: [rows, groups] in bfloat16, float16, float32 or fp8.  group: numbers that share a scale.
    zero: float32 [rows, groups]; None: 8 everywhere, or 0 for fp4.  factor: float32 [1], of all scales; None: 1.
    """

    packed: Tensor
    scale: Tensor
    size: int
    group: int = GROUP
    zero: Tensor | None = None
    fp4: bool = False
    factor: Tensor | None = None

    @property
    def rows(self) -> int:
        return self.packed.shape[0]

    @property
    def padded(self) -> int:
        return 2 * self.packed.shape[1]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self._tensors().values())

    def _tensors(self) -> dict[str, Tensor]:
        parts = {"packed": self.packed, "scale": self.scale, "zero": self.zero, "factor": self.factor}
        return {name: part for name, part in parts.items() if part is not None}

    def state(self) -> dict[str, Tensor]:
        """Its tensors by name, and its shape: [size, group, 1 for fp4]."""
        return self._tensors() | {"shape": torch.tensor([self.size, self.group, int(self.fp4)])}

    @classmethod
    def of(cls, state: dict[str, Tensor]) -> Int4Matrix:
        """What `state` gave."""
        size, group, fp4 = state["shape"].tolist()
        return cls(state["packed"], state["scale"], size, group, state.get("zero"), bool(fp4), state.get("factor"))

    def part(self, begin: int, end: int) -> Int4Matrix:
        """Some of its rows; no copy."""
        zero = None if self.zero is None else self.zero[begin:end]
        return replace(self, packed=self.packed[begin:end], scale=self.scale[begin:end], zero=zero)

    def chosen(self, ids: Tensor) -> Int4Matrix:
        """Some of its rows, copied."""
        zero = None if self.zero is None else self.zero[ids]
        return replace(self, packed=self.packed[ids], scale=self.scale[ids], zero=zero)

    def __deepcopy__(self, memo: object) -> Int4Matrix:
        return self  # it never changes, and kernels hold the addresses of its tensors

    def numbers(self) -> Tensor:
        """The weight in float32 [rows, size]."""
        nibbles = torch.stack((self.packed & 15, self.packed >> 4), dim=-1).flatten(-2)
        values = torch.tensor(FP4)[nibbles.long()] if self.fp4 else nibbles.float()
        groups = values[:, : self.scale.shape[1] * self.group].unflatten(1, (-1, self.group))
        zero = (0.0 if self.fp4 else 8.0) if self.zero is None else self.zero[:, :, None]
        scale = self.scale.float() if self.factor is None else self.scale.float() * self.factor
        return ((groups - zero) * scale[:, :, None]).flatten(1)[:, : self.size]

    def has_kernel(self) -> bool:
        """Whether the native kernels take it: whole groups of eights, scales in a format that they read."""
        whole = self.group % 8 == 0 and self.padded % self.group == 0
        return library() is not None and whole and self.scale.dtype in SCALES

    def product(self, x: Tensor, native: bool = True) -> Tensor:
        """x [n, size] · weightᵀ -> [n, rows] in x's dtype. native=False: the plain version."""
        if not native or not self.has_kernel():
            q, scale = int8.quantize(x)
            return (q.float() @ self.numbers().T * scale[:, None]).to(x.dtype)
        x_bf16 = _padded(x.bfloat16(), self.padded).contiguous()
        n, groups = x.shape[0], self.padded // self.group
        q, sums = torch.empty(n, self.padded, dtype=torch.int8), torch.empty(n, groups, dtype=torch.int32)
        row_scale, out = torch.empty(n), torch.empty(n, self.rows, dtype=torch.bfloat16)
        lib = library()
        assert lib is not None
        lib.scumble_linear_four(
            x_bf16.data_ptr(), *self.pointers(), q.data_ptr(), sums.data_ptr(), row_scale.data_ptr(), out.data_ptr(),
            n, self.padded, self.rows, self.group, *self.kind(), torch.get_num_threads(),
        )  # fmt: skip
        return out.to(x.dtype)

    def pointers(self) -> tuple[int | None, ...]:
        """Of packed, scale, zero and factor, as FourBits in four_bit.h has them."""
        return pointer(self.packed), pointer(self.scale), pointer(self.zero), pointer(self.factor)

    @cached_property
    def native(self) -> FourWeight:
        """What a native call that runs a whole layer reads of it."""
        return FourWeight(*self.pointers(), self.padded, self.rows, self.group, *self.kind())

    def kind(self) -> tuple[int, int, int]:
        """Format of scales, table of values, and zero point of all (fp4's values are raised by 12 to be unsigned)."""
        return SCALES[self.scale.dtype], int(self.fp4), 0 if self.zero is not None else 12 if self.fp4 else 8


def _padded(x: Tensor, size: int) -> Tensor:
    return x if x.shape[-1] == size else torch.nn.functional.pad(x, (0, size - x.shape[-1]))


def quantize(x: Tensor, group: int = GROUP, native: bool = True) -> Int4Matrix:
    """x [rows, size] rounded to the nearest, group by group; scales in bfloat16. native=False: the plain version."""
    rows, size = x.shape
    groups = -(-size // group)
    packed = torch.empty(rows, groups * group // 2, dtype=torch.uint8)
    scale = torch.empty(rows, groups, dtype=torch.bfloat16)
    lib = library() if native else None
    if lib is not None and x.dtype is torch.bfloat16 and group % 16 == 0 and size % group == 0:
        x = x.contiguous()
        lib.scumble_quantize_four(
            x.data_ptr(), packed.data_ptr(), scale.data_ptr(), rows, size, group, torch.get_num_threads()
        )
        return Int4Matrix(packed, scale, size, group)
    for part in pieces(rows):
        packed[part], scale[part] = _quantize_rows(x[part], group)
    return Int4Matrix(packed, scale, size, group)


def _quantize_rows(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    x = x.float()
    x = torch.nn.functional.pad(x, (0, -x.shape[-1] % group)).unflatten(-1, (-1, group))
    extreme = x.gather(-1, x.abs().argmax(-1, keepdim=True))[..., 0]
    scale = (extreme / -8).bfloat16()
    step = torch.where(scale == 0, 1.0, scale.float())[..., None]
    q = ((x / step).round_().clamp_(-8, 7) + 8).to(torch.uint8).flatten(1)
    return q[:, 0::2] | q[:, 1::2] << 4, scale


class Int4ExpertMatrices:
    """Gate and up [F, D] and down [D, F] of every expert, and where the kernel finds them."""

    def __init__(self, gate: Sequence[Int4Matrix], up: Sequence[Int4Matrix], down: Sequence[Int4Matrix]):
        self.gate, self.up, self.down = tuple(gate), tuple(up), tuple(down)
        first = {(m.kind(), m.group, m.padded) if m.scale.dtype in SCALES else None for m in (*self.gate, *self.up)}
        second = {(m.kind(), m.group, m.padded) if m.scale.dtype in SCALES else None for m in self.down}
        kinds = {m.kind() for m in (*self.gate, *self.up, *self.down) if m.scale.dtype in SCALES}
        alike = len(first) == len(second) == len(kinds) == 1
        self.serves = alike and all(m.has_kernel() for m in (*self.gate, *self.up, *self.down))
        self.tables = [_table(matrices) for matrices in (self.gate, self.up, self.down)] if self.serves else []
        self.native = self._native() if self.serves else None

    def _native(self) -> FourExperts:
        """What a native call that runs a whole layer reads of them."""
        gate, down = self.gate[0], self.down[0]
        tables = (ctypes.addressof(table) for table in self.tables)
        sizes = gate.padded, gate.rows, down.padded, down.rows, gate.group, down.group
        return FourExperts(*tables, *sizes, *gate.kind())

    def __deepcopy__(self, memo: object) -> Int4ExpertMatrices:
        return self

    @property
    def nbytes(self) -> int:
        return sum(matrix.nbytes for matrix in (*self.gate, *self.up, *self.down))

    def __call__(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """x [N, D] bfloat16, weights float32 and chosen int64 [N, k] -> [N, D]: the weighted sum of the experts."""
        (n, k), gate, down = chosen.shape, self.gate[0], self.down[0]
        inputs = _padded(x, gate.padded).contiguous()
        q, sums = (
            torch.empty(inputs.shape, dtype=torch.int8),
            torch.empty(n, gate.padded // gate.group, dtype=torch.int32),
        )
        row_scale, slots = torch.empty(n), torch.empty(n * k, down.rows, dtype=torch.bfloat16)
        out = torch.empty(n, down.rows, dtype=torch.bfloat16)
        lib = library()
        assert lib is not None
        lib.scumble_experts_four(
            inputs.data_ptr(), weights.contiguous().data_ptr(), chosen.contiguous().data_ptr(),
            *(ctypes.addressof(table) for table in self.tables), q.data_ptr(), sums.data_ptr(), row_scale.data_ptr(),
            slots.data_ptr(), out.data_ptr(), n, k, len(self.gate), gate.padded, gate.rows, down.padded, down.rows,
            gate.group, down.group, *gate.kind(), torch.get_num_threads(),
        )  # fmt: skip
        return out


def _table(matrices: Sequence[Int4Matrix]) -> ctypes.Array[ctypes.c_void_p]:
    """FourBits of four_bit.h, one a matrix: four pointers each."""
    pointers = [each for matrix in matrices for each in matrix.pointers()]
    return (ctypes.c_void_p * len(pointers))(*pointers)

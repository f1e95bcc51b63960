"""bfloat16 weights as the kernels read them: panels of 64 outputs, packed once, when a model is loaded.

A panel is [in / 2][64] dwords, a dword two neighbouring numbers of one output (src/gemm.h). A product then streams
through memory for one row as for many, and takes every sum in the same order.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from scumble.ops.cpu.native import address

PANEL = 64
HALF = 32  # gate columns and up columns that share a panel of gate_up, as in src/experts.cpp


class Packed:
    """A weight [rows, size], size even."""

    def __init__(self, lib: ctypes.CDLL, weight: Tensor):
        self.lib, (self.rows, self.size) = lib, weight.shape
        self.panels = torch.empty(-(-self.rows // PANEL), self.size // 2, PANEL, dtype=torch.int32)
        lib.scumble_pack_bf16(
            address(weight.contiguous()), self.panels.data_ptr(), self.rows, self.size, torch.get_num_threads()
        )
        self.base = (self.panels.data_ptr(), None, None)

    def __deepcopy__(self, memo: object) -> Packed:
        return self  # it never changes

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, size] -> [n, rows]"""
        out = torch.empty(x.shape[0], self.rows, dtype=torch.bfloat16)
        self.lib.scumble_linear(
            address(x), self.base[0], None, out.data_ptr(), x.shape[0], self.size, self.rows, torch.get_num_threads()
        )
        return out

    def part(self, x: Tensor, first: int, last: int) -> Tensor:
        """The product with rows first … last - 1 alone, first a multiple of 64."""
        out = torch.empty(x.shape[0], last - first, dtype=torch.bfloat16)
        self.lib.scumble_linear(
            address(x), self.base[0] + 2 * first * self.size, None, out.data_ptr(), x.shape[0], self.size, last - first,
            torch.get_num_threads(),
        )  # fmt: skip
        return out

    def plain(self) -> Tensor:
        """The weight as it was, [rows, size]."""
        lying = self.panels.transpose(1, 2).contiguous().view(torch.bfloat16)
        return lying.view(-1, self.size)[: self.rows].contiguous()


class PackedExperts:
    """gate_up [E, 2F, D] (gate first) and down [E, D, F]; D and F even."""

    def __init__(self, lib: ctypes.CDLL, gate_up: Tensor, down: Tensor):
        self.lib, (self.count, self.size, self.width) = lib, down.shape
        ups, downs = -(-self.width // HALF), -(-self.size // PANEL)
        self.up = torch.empty(self.count, ups, self.size // 2, PANEL, dtype=torch.int32)
        self.down = torch.empty(self.count, downs, self.width // 2, PANEL, dtype=torch.int32)
        lib.scumble_pack_experts(
            address(gate_up.contiguous()), address(down.contiguous()), self.up.data_ptr(), self.down.data_ptr(),
            self.count, self.size, self.width, torch.get_num_threads(),
        )  # fmt: skip
        self.bases = ((self.up.data_ptr(), None, None), (self.down.data_ptr(), None, None))

    def __deepcopy__(self, memo: object) -> PackedExperts:
        return self

    @property
    def nbytes(self) -> int:
        return self.up.nbytes + self.down.nbytes

    def __call__(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """x [N, D], weights and chosen [N, k] -> [N, D]"""
        n, k = chosen.shape
        slots, out = torch.empty(n * k, self.size, dtype=x.dtype), torch.empty_like(x)
        self.lib.scumble_experts(
            address(x), weights.data_ptr(), chosen.data_ptr(), self.up.data_ptr(), self.down.data_ptr(), None, None,
            slots.data_ptr(), out.data_ptr(), n, k, self.count, self.size, self.width, torch.get_num_threads(),
        )  # fmt: skip
        return out

    def plain(self) -> tuple[Tensor, Tensor]:
        """gate_up and down as they were."""
        lying = self.up.transpose(2, 3).contiguous().view(torch.bfloat16)  # [E, panels, 64, D]
        halves = lying.unflatten(2, (2, HALF)).transpose(1, 2).flatten(2, 3)[:, :, : self.width]  # [E, 2, F, D]
        down = self.down.transpose(2, 3).contiguous().view(torch.bfloat16).flatten(1, 2)[:, : self.size]
        return halves.flatten(1, 2).contiguous(), down.contiguous()

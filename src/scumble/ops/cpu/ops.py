"""The operations with native kernels (ops/cpu/src): bfloat16 on a CPU, inference only.

A tensor that is not what the kernels read (another dtype, not contiguous) is a mistake of the caller and raises.
Shapes: N tokens, D hidden, H heads, K head_dim, E experts, k experts a token, F expert width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scumble.ops.api import StepRow
from scumble.ops.cpu import vocab
from scumble.ops.cpu.law import solve
from scumble.ops.cpu.native import LayerRow, LayerSizes, LayerWeights, address, instructions
from scumble.ops.cpu.packed import Packed, PackedExperts
from scumble.ops.query import VocabQuery
from scumble.ops.reference import ReferenceOps
from scumble.ops.result import VocabResult
from scumble.ops.tiled import vocab_head as tiled_head
from scumble.structure.graph import Window
from scumble.structure.law import Masses, Solution

PACKED_ROWS = 16  # query rows a key head, from which packing keys and values pays
PACKED_KEYS = 32_768  # beyond, packing keys and values would hold too much memory: they are read as they lie


def reads_as_they_lie(rows: int, seen: int) -> bool:
    """Keys and values of `seen` tokens, for `rows` query rows a key head; otherwise they are packed first."""
    return rows < PACKED_ROWS or seen > PACKED_KEYS


class CpuOps(ReferenceOps):
    """The methods of `Ops` (ops/api.py says what each computes)."""

    name = "cpu"
    batch_invariant = True
    packs = True
    few_tokens = 32

    def __init__(self, lib: ctypes.CDLL):
        self.lib, self.variant = lib, instructions()

    def __deepcopy__(self, memo: object) -> CpuOps:
        return self

    def rms_norm(self, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        size, out = x.shape[-1], torch.empty_like(x)
        self.lib.scumble_rms_norm(
            address(x), address(weight), out.data_ptr(), x.numel() // size, size, size, eps, torch.get_num_threads()
        )
        return out

    def norm_rope(self, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(x)
        self.lib.scumble_norm_rope(
            address(x), address(weight), address(cos), address(sin), out.data_ptr(), *x.shape, eps,
            torch.get_num_threads(),
        )  # fmt: skip
        return out

    def geglu(self, gate: Tensor, up: Tensor) -> Tensor:
        out = torch.empty_like(gate)
        self.lib.scumble_geglu(address(gate), address(up), out.data_ptr(), gate.numel(), torch.get_num_threads())
        return out

    def attention_tail(
        self, x: Tensor, y: Tensor, weight: Tensor, first: Tensor, second: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        h, one, two = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
        self.lib.scumble_attention_tail(
            *map(address, (x, y, weight, first, second)), h.data_ptr(), one.data_ptr(), two.data_ptr(), *x.shape, eps,
            torch.get_num_threads(),
        )  # fmt: skip
        return h, one, two

    def layer_tail(
        self,
        h: Tensor,
        branches: tuple[Tensor, Tensor],
        weights: tuple[Tensor, Tensor, Tensor],
        denoise: Tensor,
        scalars: tuple[Tensor, Tensor],
        eps: float,
    ) -> Tensor:
        out = torch.empty_like(h)
        self.lib.scumble_layer_tail(
            address(h), *map(address, branches), *map(address, weights), denoise.data_ptr(), *map(address, scalars),
            out.data_ptr(), *h.shape, eps, torch.get_num_threads(),
        )  # fmt: skip
        return out

    def attend_all(self, queries: Tensor, keys: Tensor, values: Tensor, first: int = 0) -> Tensor:
        return self._attend(queries, keys, values, 0, first)

    def attend_causal(
        self, queries: Tensor, keys: Tensor, values: Tensor, window: int | None, first: int = 0
    ) -> Tensor:
        return self._attend(queries, keys, values, keys.shape[1] if window is None else window, first)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, window: int, first: int) -> Tensor:
        """Keys and values [G, S, K] of equal strides, rows contiguous. window 0: all see all."""
        (n, heads, dim), (groups, seen, _) = queries.shape, keys.shape
        out = torch.empty_like(queries)
        few = reads_as_they_lie(n * heads // groups, seen)
        self.lib.scumble_attention(
            address(queries), keys.data_ptr(), values.data_ptr(), out.data_ptr(), n, heads, groups, dim, seen,
            keys.stride(0), window, first, few, torch.get_num_threads(),
        )  # fmt: skip
        return out

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        out = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype)
        self.lib.scumble_linear(
            address(x), None, address(weight), out.data_ptr(), x.shape[0], x.shape[1], weight.shape[0],
            torch.get_num_threads(),
        )  # fmt: skip
        return out

    def pack(self, weight: Tensor, form: str | None = None) -> Packed:
        return Packed(self.lib, weight)

    def pack_experts(self, gate_up: Tensor, down: Tensor, form: str | None = None) -> PackedExperts:
        return PackedExperts(self.lib, gate_up, down)

    def router(
        self, h: Tensor, scale: Tensor, proj: Tensor, per_expert: Tensor, k: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        n, size = h.shape
        scores = torch.empty(n, proj.shape[0], dtype=torch.float32)
        weights = torch.empty(n, k, dtype=torch.float32)
        chosen = torch.empty(n, k, dtype=torch.int64)
        self.lib.scumble_router(
            *map(address, (h, scale, proj, per_expert)), scores.data_ptr(), weights.data_ptr(), chosen.data_ptr(),
            n, size, proj.shape[0], k, eps, torch.get_num_threads(),
        )  # fmt: skip
        return weights, chosen, None

    def layer_step(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        rows: Sequence[StepRow],
        vectors: Sequence[Tensor],
        matrices: Sequence[int | None],
        sizes: Sequence[int],
        eps: float,
    ) -> Tensor:
        out, numbers = torch.empty_like(x), LayerSizes(len(rows), *sizes)
        weights = LayerWeights(*map(address, vectors), *matrices)
        share = numbers.heads // numbers.groups
        caches = [
            LayerRow(
                keys.data_ptr(), values.data_ptr(), n, keys.stride(0), start, end, window, first,
                reads_as_they_lie(n * share, end + n - start),
            )
            for keys, values, n, start, end, window, first in rows
        ]  # fmt: skip
        taken = (LayerRow * len(caches))(*caches)
        self.lib.scumble_layer(
            address(x), out.data_ptr(), address(rope[0]), address(rope[1]), ctypes.addressof(taken),
            ctypes.addressof(weights), ctypes.addressof(numbers), eps, torch.get_num_threads(),
        )  # fmt: skip
        return out

    def experts(self, x: Tensor, weights: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        (n, size), k, (count, _, width) = x.shape, chosen.shape[1], down.shape
        slots, out = torch.empty(n * k, size, dtype=x.dtype), torch.empty_like(x)
        self.lib.scumble_experts(
            address(x), weights.data_ptr(), chosen.data_ptr(), None, None, address(gate_up), address(down),
            slots.data_ptr(), out.data_ptr(), n, k, count, size, width, torch.get_num_threads(),
        )  # fmt: skip
        return out

    def grouped(
        self, x: Tensor, weights: Tensor, chosen: Tensor, count: int, matrices: Callable[[int], tuple[Tensor, Tensor]]
    ) -> Tensor:
        """As the reference says, but with every sum in its fixed order: expert by expert, then by slot."""
        n, k = chosen.shape
        slots = torch.zeros(n * k, x.shape[1], dtype=torch.bfloat16)
        for expert in chosen.unique().tolist():
            rows = (chosen.flatten() == expert).nonzero()[:, 0]
            up, down = matrices(expert)
            gate, linear = (half.contiguous() for half in self.linear(x[rows // k], up).chunk(2, dim=-1))
            slots[rows] = self.linear(self.geglu(gate, linear), down)
        total = torch.zeros(n, x.shape[1])
        for choice in range(k):
            total += slots.view(n, k, -1)[:, choice].float() * weights[:, choice, None]
        return total.to(x.dtype)

    def canvas_law(self, window: Window, masses: Masses, uniforms: np.ndarray | None) -> Solution:
        return solve(self.lib, window, masses, uniforms)

    def vocab_head(
        self,
        hidden: Tensor,
        embedding: Tensor,
        query: VocabQuery,
        *,
        cap: float,
        head: Any = None,
    ) -> VocabResult:
        if head is not None and not isinstance(head, Packed) and head.lib is None:  # int8 of a size that is not packed
            return tiled_head(hidden, embedding, query, cap=cap, head=head)
        return vocab.vocab_head(self.lib, hidden, embedding, query, cap=cap, head=head or Packed(self.lib, embedding))

"""The operations with native kernels (ops/cpu/src): bfloat16 on a CPU, inference only.

A tensor that is not what the kernels read (another dtype, not contiguous) is a mistake of the caller and raises.
Shapes: N tokens, D hidden, H heads, K head_dim, E experts, k experts a token, F expert width.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scumble.ops.api import Temperature
from scumble.ops.classes import TokenClasses
from scumble.ops.cpu import vocab
from scumble.ops.cpu.law import solve
from scumble.ops.cpu.native import address
from scumble.ops.reference import ReferenceOps, attend_grouped, causal_mask
from scumble.ops.result import VocabResult
from scumble.ops.tiled import vocab_head
from scumble.structure.law import Graph, Masses, Solution

FEW_ROWS = 4  # of a linear layer, up to which it runs at memory speed
PACKED_ROWS = 16  # query rows a key head, from which packing keys and values pays
PACKED_KEYS = 32_768  # beyond, torch's attention serves: packing keys and values would hold too much memory


class CpuOps(ReferenceOps):
    """The methods of `Ops` (ops/api.py says what each computes)."""

    name = "cpu"

    def __init__(self, lib: ctypes.CDLL):
        self.lib = lib

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
        self, h: Tensor, branches: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor, Tensor], denoise: Tensor,
        scalars: tuple[Tensor, Tensor], eps: float,
    ) -> Tensor:  # fmt: skip
        out = torch.empty_like(h)
        self.lib.scumble_layer_tail(
            address(h), *map(address, branches), *map(address, weights), denoise.data_ptr(), *map(address, scalars),
            out.data_ptr(), *h.shape, eps, torch.get_num_threads(),
        )  # fmt: skip
        return out

    def attend_all(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return self._attend(queries, keys, values, 0)

    def attend_causal(self, queries: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
        return self._attend(queries, keys, values, keys.shape[1] if window is None else window)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
        """Keys and values [G, S, K] of equal strides, rows contiguous. window 0: all see all."""
        (n, heads, dim), (groups, seen, _) = queries.shape, keys.shape
        if n > 1 and seen > PACKED_KEYS:
            mask = causal_mask(n, seen, window, queries.device) if window else None
            return attend_grouped(queries, keys, values, mask)
        out = torch.empty_like(queries)
        if n * heads // groups < PACKED_ROWS:
            room, kernel = torch.empty(torch.get_num_threads() * seen), self.lib.scumble_attention_few
        else:
            panels = -(-seen // 64) * 64 * (dim // 2) + -(-dim // 64) * 64 * ((seen + 1) // 2)
            room, kernel = torch.empty(groups * panels, dtype=torch.int32), self.lib.scumble_attention
        kernel(
            address(queries), keys.data_ptr(), values.data_ptr(), out.data_ptr(), room.data_ptr(),
            n, heads, groups, dim, seen, keys.stride(0), window, torch.get_num_threads(),
        )  # fmt: skip
        return out

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        if x.shape[0] > FEW_ROWS:
            return torch.nn.functional.linear(x, weight)
        out = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype)
        self.lib.scumble_few_rows(
            address(x), address(weight), out.data_ptr(), x.shape[0], x.shape[1], weight.shape[0],
            torch.get_num_threads(),
        )  # fmt: skip
        return out

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

    def experts(self, x: Tensor, weights: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        (n, size), k, (count, _, width) = x.shape, chosen.shape[1], down.shape
        slots, out = torch.empty(n * k, size, dtype=x.dtype), torch.empty_like(x)
        self.lib.scumble_experts(
            address(x), weights.data_ptr(), chosen.data_ptr(), address(gate_up), address(down), slots.data_ptr(),
            out.data_ptr(), n, k, count, size, width, torch.get_num_threads(),
        )  # fmt: skip
        return out

    def canvas_law(self, graph: Graph, masses: Masses, start: int, room: int, uniforms: np.ndarray | None) -> Solution:
        return solve(self.lib, graph, masses, start, room, uniforms)

    def vocab_head(
        self,
        hidden: Tensor,
        embedding: Tensor,
        *,
        cap: float,
        temperature: Temperature = 1.0,
        uniforms: Tensor | None = None,
        want_soft: bool = False,
        allowed: Tensor | None = None,
        top: int = 0,
        targets: Tensor | None = None,
        classes: TokenClasses | None = None,
        head: Any = None,
    ) -> VocabResult:
        n, size = hidden.shape[0], embedding.shape[0]
        plain = allowed is not None or top > 0 or targets is not None or isinstance(temperature, Tensor)
        if plain or n * size < vocab.LEAST or (head is not None and head.lib is None):
            return vocab_head(
                hidden, embedding, cap=cap, temperature=temperature, uniforms=uniforms, want_soft=want_soft,
                allowed=allowed, top=top, targets=targets, classes=classes, head=head,
            )  # fmt: skip
        assert not isinstance(temperature, Tensor)
        return vocab.vocab_head(
            self.lib, hidden, embedding, cap=cap, temperature=temperature, uniforms=uniforms, want_soft=want_soft,
            classes=classes, head=head,
        )  # fmt: skip

"""gelu_tanh(gate) · up, where the two come from products of their own. (`linear` and `experts` have it built in.)"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from scumble.ops.triton.launch import blocks, launch


@triton.jit
def gelu_tanh(x):
    """½ x (1 + tanh u), u = √(2/π) (x + 0.044715 x³); x float32."""
    u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x / (1.0 + tl.exp(-2.0 * u))


@triton.jit
def _geglu(gate, up, out, COUNT, B: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    ok = i < COUNT
    activated = gelu_tanh(tl.load(gate + i, mask=ok, other=0.0).to(tl.float32))
    activated = activated.to(out.dtype.element_ty).to(tl.float32)
    value = activated * tl.load(up + i, mask=ok, other=0.0).to(tl.float32)
    tl.store(out + i, value.to(out.dtype.element_ty), mask=ok)


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """gate and up of one shape, contiguous."""
    out = torch.empty_like(gate)
    launch("geglu", _geglu, (blocks(gate.numel(), 1024),), (gate, up, out, gate.numel()), B=1024)
    return out


def geglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    return F.gelu(gate, approximate="tanh") * up

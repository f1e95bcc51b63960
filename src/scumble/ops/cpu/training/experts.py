"""The experts' share of mixed-precision training on a CPU (chains.py): every expert's products are of one run
of rows, gathered and scattered by native sweeps.

Shapes: N tokens, D hidden, E experts, k experts a token, F expert width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from scumble.ops.cpu.training.products import LEAST_ROWS, outer, product


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

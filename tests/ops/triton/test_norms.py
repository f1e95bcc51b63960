"""Norms and the chains around them, against plain torch. They round where it rounds, so bfloat16 results are nearly
always the same bits: at most one unit in the last place where a float32 sum came out on the other side of a border."""

from __future__ import annotations

import pytest
import torch

from scumble.ops.triton import norms

EPS = 1e-6
TOLERANCE = {torch.bfloat16: 2**-7, torch.float32: 2e-6}


def numbers(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.randn(*shape).to(dtype).to(device)


def close(one: torch.Tensor, two: torch.Tensor) -> None:
    tolerance = TOLERANCE[one.dtype]
    torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", [64, 96])
def test_norm(size: int, dtype: torch.dtype, device: torch.device) -> None:
    x, weight = numbers(7, size, dtype=dtype, device=device), numbers(size, dtype=dtype, device=device)
    close(norms.norm(x, weight, EPS), norms.norm_reference(x, weight, EPS))
    close(norms.norm(x, None, EPS), norms.norm_reference(x, None, EPS))


def test_attention_tail(dtype: torch.dtype, device: torch.device) -> None:
    x, attended = (numbers(5, 96, dtype=dtype, device=device) for _ in range(2))
    weights = [numbers(96, dtype=dtype, device=device) for _ in range(3)]
    ours = norms.attention_tail(x, attended, *weights, EPS)
    for one, two in zip(ours, norms.attention_tail_reference(x, attended, *weights, EPS), strict=True):
        close(one, two)


def test_layer_tail_takes_each_tokens_own_scalar(dtype: torch.dtype, device: torch.device) -> None:
    h, dense, mixed = (numbers(6, 96, dtype=dtype, device=device) for _ in range(3))
    weights = tuple(numbers(96, dtype=dtype, device=device) for _ in range(3))
    denoise = (torch.arange(6, device=device) % 2 == 0)[:, None]
    scales = (torch.full((1,), 0.5, dtype=dtype, device=device), torch.full((1,), 2.0, dtype=dtype, device=device))
    arguments = (h, (dense, mixed), weights, denoise, scales, EPS)
    close(norms.layer_tail(*arguments), norms.layer_tail_reference(*arguments))

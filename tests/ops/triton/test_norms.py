"""Norms and the chains around them, against plain torch. They round where it rounds, so bfloat16 results are nearly
always the same bits: at most one unit in the last place where a float32 sum came out on the other side of a border."""

from __future__ import annotations

import pytest
import torch

from scumble.ops.triton import norms
from scumble.ops.triton.activations import for_format

pytestmark = pytest.mark.usefixtures("guarded")

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
    a, b, c = (numbers(96, dtype=dtype, device=device) for _ in range(3))
    ours = norms.attention_tail(x, attended, a, b, c, EPS)
    for one, two in zip(ours, norms.attention_tail_reference(x, attended, a, b, c, EPS), strict=True):
        close(one, two)


def test_layer_tail_takes_each_tokens_own_scalar(dtype: torch.dtype, device: torch.device) -> None:
    h, dense, mixed = (numbers(6, 96, dtype=dtype, device=device) for _ in range(3))
    a, b, c = (numbers(96, dtype=dtype, device=device) for _ in range(3))
    denoise = (torch.arange(6, device=device) % 2 == 0)[:, None]
    scales = (torch.full((1,), 0.5, dtype=dtype, device=device), torch.full((1,), 2.0, dtype=dtype, device=device))
    arguments = (h, (dense, mixed), (a, b, c), denoise, scales, EPS)
    close(norms.layer_tail(*arguments), norms.layer_tail_reference(*arguments))


@pytest.mark.parametrize("format", ["fp8", "int8"])
def test_norms_leave_what_products_take(format: str, device: torch.device) -> None:
    """The same bits as rounding what they return."""
    x, attended = (numbers(5, 96, dtype=torch.bfloat16, device=device) for _ in range(2))
    one, two, three = (numbers(96, dtype=torch.bfloat16, device=device) for _ in range(3))
    normed, left = norms.norm_for(x, one, EPS, format)
    found = [(normed, left)]
    (_, for_mlp, for_experts), both = norms.attention_tail_for(x, attended, (one, two, three), EPS, (format, format))
    found += [(for_mlp, both[0]), (for_experts, both[1])]
    assert torch.equal(normed, norms.norm(x, one, EPS))
    for out, left in found:
        again = for_format(out, format)
        assert torch.equal(left.values.view(torch.int8), again.values.view(torch.int8))
        assert torch.equal(left.factor, again.factor)

"""The interpreter that the other tests trust, itself: bfloat16 is right, or it is refused."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

from ops.triton.conftest import HAS_CARD

pytestmark = pytest.mark.skipif(HAS_CARD, reason="the interpreter is for machines without a card")


@triton.jit
def _sum_of_products(x, y, out):
    i = tl.arange(0, 16)
    a = tl.load(x + i[:, None] * 16 + i[None, :])
    b = tl.load(y + i[:, None] * 16 + i[None, :])
    tl.store(out + i[:, None] * 16 + i[None, :], tl.dot(a, b).to(tl.bfloat16))


def test_products_of_bfloat16_are_products_of_numbers_not_of_bit_patterns() -> None:
    x, y = torch.randn(16, 16).bfloat16(), torch.randn(16, 16).bfloat16()
    out = torch.empty(16, 16, dtype=torch.bfloat16)
    _sum_of_products[(1,)](x, y, out)
    torch.testing.assert_close(out, (x.float() @ y.float()).bfloat16(), rtol=2**-7, atol=2**-7)


@triton.jit
def _cast(x, out):
    i = tl.arange(0, 64)
    tl.store(out + i, tl.load(x + i).to(out.dtype.element_ty))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_casts_round_to_nearest_even_both_ways(dtype: torch.dtype) -> None:
    x = torch.randn(64) * 10
    narrow, back = torch.empty(64, dtype=dtype), torch.empty(64)
    _cast[(1,)](x, narrow)
    assert torch.equal(narrow.float(), x.to(dtype).float())
    _cast[(1,)](narrow, back)
    assert torch.equal(back, narrow.float())


@triton.jit
def _sum(x, out):
    tl.store(out, tl.sum(tl.load(x + tl.arange(0, 16)), 0))


@triton.jit
def _comparison(x, out):
    i = tl.arange(0, 16)
    value = tl.load(x + i)
    tl.store(out + i, tl.where(value > tl.load(x), 1.0, 0.0))


@pytest.mark.parametrize("kernel", [_sum, _comparison])
def test_other_arithmetic_on_bfloat16_is_refused(kernel: triton.JITFunction) -> None:
    with pytest.raises(InterpreterError, match="convert to float32 first"):
        kernel[(1,)](torch.ones(16, dtype=torch.bfloat16), torch.empty(16))

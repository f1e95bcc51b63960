"""The guard itself: kernels that reach beside their tensors are found."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from ops.triton.guarded import guarded


@triton.jit
def _copy(x, out, N, READ: tl.constexpr, WRITE: tl.constexpr):
    i = tl.arange(0, 16)
    tl.store(out + i, tl.load(x + i, mask=i < N + READ, other=0.0), mask=i < N + WRITE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_what_a_kernel_reads_or_writes_too_much_is_found(dtype: torch.dtype, device: torch.device) -> None:
    memory = torch.arange(64, device=device).float().to(dtype)
    x, out = memory[3:13], torch.empty(10, dtype=dtype, device=device)
    with guarded():
        _copy[(1,)](x, out, 10, READ=0, WRITE=0)
        assert torch.equal(out.float(), x.float())
        with pytest.raises(AssertionError, match="_copy writes beside a tensor of shape"):
            _copy[(1,)](x, out, 10, READ=0, WRITE=1)
        wide = torch.empty(12, dtype=dtype, device=device)
        _copy[(1,)](x, wide, 10, READ=2, WRITE=2)
        assert wide[10:].float().isnan().all()


def test_gaps_of_a_view_are_poisoned_too(device: torch.device) -> None:
    x, out = torch.zeros(4, 2, device=device)[:, 0], torch.empty(4, device=device)
    with guarded():
        _copy[(1,)](x, out, 4, READ=0, WRITE=0)  # as if they lay side by side
    assert out.isnan().tolist() == [False, True, False, True]

"""The kernels on whatever is here: a CUDA card, or Triton's interpreter on the CPU, repaired (interpreter.py)."""

from __future__ import annotations

import pytest
import torch

HAS_CARD = torch.cuda.is_available()
if not HAS_CARD:
    from ops.triton import interpreter

    interpreter.install()

DTYPES = (torch.bfloat16, torch.float32)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if HAS_CARD else "cpu")


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)

"""The kernels on whatever is here: a CUDA card, or Triton's interpreter on the CPU, repaired (interpreter.py)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from scumble.engine import replay

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


@pytest.fixture
def guarded() -> Iterator[None]:
    """Kernels see nothing but their own tensors."""
    from ops.triton import guarded

    with guarded.guarded():
        yield


@pytest.fixture(autouse=True)
def _little_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replayed passes launch for the longest context of their bucket; the interpreter is slow for each program."""
    monkeypatch.setattr(replay, "BUCKETS", (16, 64))


@pytest.fixture(autouse=True)
def _seeded_and_poisoned() -> Iterator[None]:
    """New memory is full of NaN: what a kernel reads too much, or fails to write, shows in its results."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)

"""The ways in which rows run, and what both kinds of tests read of their events."""

import pytest
import torch

from scumble.decode import TokensCommitted
from scumble.ops import choose
from tiny import tiny_model

WAYS = ["forwards of their own", "a shared forward", "caches in int8", "a shared forward, caches in fp8"]


def model_for(way, **shape):
    """A tiny model whose rows run that way; skips where no operations of this machine let rows share a forward."""
    is_shared = way.startswith("a shared forward")
    model = tiny_model(dtype=torch.bfloat16 if is_shared else torch.float32, **shape)
    model.cache_format = next((form for form in ("int8", "fp8") if form in way), None)
    if not is_shared:
        return model
    model.use(choose("cpu", torch.bfloat16, model.config).ops)
    if not model.ops.batch_invariant:
        pytest.skip("no batch-invariant operations on this machine")
    return model


def ids(events):
    return [token for event in events if isinstance(event, TokensCommitted) for token in event.ids]

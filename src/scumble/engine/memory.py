"""How much memory caches take, and how much of it there is."""

from __future__ import annotations

import os

import torch

from scumble.checkpoint.memory import available
from scumble.config import ModelConfig
from scumble.errors import InvalidRequest, size
from scumble.model import Transformer
from scumble.model.cache import capacity

CHUNK = 512  # tokens; bounds the memory of attention masks and activations. A fixed size keeps results reproducible.
LEAST_PREFIXES = 64 * 2**20  # bytes
SHARE = 0.5  # of the memory that is there, for caches
UNKNOWN = 4 * 2**30  # bytes for them where the system does not say what there is


def cache_memory(device: torch.device) -> int:
    """Bytes that all caches together may take: half of what the weights have left, on the card or of what this process
    may take."""
    room = available(device)
    if room is not None:
        return int(room.bytes * SHARE)
    try:  # elsewhere than on Linux: of what the machine has
        return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * SHARE)
    except (AttributeError, OSError, ValueError):
        return UNKNOWN


def prefix_memory(model: Transformer) -> int:
    """Bytes for beginnings that requests may share (engine/prefix.py): little beside the weights."""
    return max(LEAST_PREFIXES, model.nbytes // 16)


class CacheSize:
    """Bytes of a row's keys and values, by how many tokens they are of; never less than what the buffers take."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype):
        self.full = self.sliding = 0  # bytes a token
        for layer in config.layers:
            nbytes = 2 * layer.num_key_value_heads * layer.head_dim * dtype.itemsize
            self.full += 0 if layer.is_sliding else nbytes
            self.sliding += nbytes if layer.is_sliding else 0
        # A sliding layer keeps a window, and what is added at a time: a chunk, or a commit and the next canvas.
        self.most = config.sliding_window + max(CHUNK, 2 * config.canvas_length)

    def __call__(self, tokens: int) -> int:
        return capacity(tokens) * self.full + capacity(min(tokens, self.most)) * self.sliding


def too_little(tokens: int, needed: int, memory: int) -> InvalidRequest:
    return InvalidRequest(
        f"the request needs {size(needed)} for keys and values of {tokens} tokens, the engine has {size(memory)}; "
        "shorten the prompt or max_new_tokens"
    )

"""How much memory caches take, and how much of it there is."""

from __future__ import annotations

import os

import torch

from scumble.config import ModelConfig
from scumble.model import Transformer

LEAST_PREFIXES = 64 * 2**20  # bytes
SHARE = 0.5  # of the memory that is there, for caches


def cache_memory(device: torch.device) -> int:
    """Bytes that all caches together may take: half of what is free on a GPU, or of what the machine has."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * SHARE)
    try:
        return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * SHARE)
    except (AttributeError, OSError, ValueError):  # no such question on this system
        return 4 * 2**30


def prefix_memory(model: Transformer) -> int:
    """Bytes for beginnings that requests may share (engine/prefix.py): little beside the weights."""
    return max(LEAST_PREFIXES, model.nbytes // 16)


def cache_bytes(config: ModelConfig, dtype: torch.dtype, tokens: int) -> int:
    """Keys and values of a context of that many tokens, all layers; sliding layers keep a window of it."""
    total = 0
    for layer in config.layers:
        kept = min(tokens, 2 * (config.sliding_window + config.canvas_length)) if layer.is_sliding else tokens
        total += 2 * kept * layer.num_key_value_heads * layer.head_dim
    return total * dtype.itemsize

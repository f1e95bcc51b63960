"""How much memory requests take, and how much of it there is."""

from __future__ import annotations

import os
from bisect import bisect_right

import torch

from scumble.checkpoint.memory import available
from scumble.config import ModelConfig
from scumble.errors import InvalidRequest, ScumbleError, size
from scumble.model import Transformer
from scumble.model.cache import capacity
from scumble.model.rounding import CacheFormat, token_bytes

CHUNK = 512  # tokens; bounds the memory of attention masks and activations. A fixed size keeps results reproducible.
LEAST_PREFIXES = 64 * 2**20  # bytes
SHARE = 0.5  # of the memory that is there, for caches
UNKNOWN = 4 * 2**30  # bytes for them where the system does not say what there is


def cache_memory(device: torch.device) -> int:
    """Bytes that all requests together may take: half of what the weights have left, on the card or of what this
    process may take. The other half is for the tensors of a pass, and for whatever else the process does."""
    room = available(device)
    if room is not None:
        return int(room.bytes * SHARE)
    try:  # elsewhere than on Linux: of what the machine has
        return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * SHARE)
    except (AttributeError, OSError, ValueError):
        return UNKNOWN


def longest_context(config: ModelConfig, dtype: torch.dtype, memory: int) -> int:
    """Tokens of one request whose keys and values fit into so many bytes; 0: not even one's."""
    needed = CacheSize(config, dtype)
    return max(0, bisect_right(range(config.max_position_embeddings + 1), memory, key=needed) - 1)


def prefix_memory(model: Transformer) -> int:
    """Bytes for beginnings that requests may share (engine/prefix.py): little beside the weights."""
    return max(LEAST_PREFIXES, model.nbytes // 16)


class CacheSize:
    """Bytes that a row takes: keys and values of so many tokens, never less than what the buffers take; and of each
    token of its canvases two soft embeddings, the last pass's and the next one's. The rest of a row is small: ids, and
    what a law keeps. A pass's own tensors are bounded by its tokens, whoever they are of, and fit beside.

    form: of a cache in eight bits."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, form: CacheFormat | None = None):
        full = [layer for layer in config.layers if not layer.is_sliding]
        sliding = [layer for layer in config.layers if layer.is_sliding]
        self.full, self.sliding = (  # bytes a token
            sum(token_bytes(layer, dtype.itemsize, form) for layer in layers) for layers in (full, sliding)
        )
        self.soft = 2 * 4 * config.hidden_size
        # A sliding layer keeps a window, and what is added at a time: a chunk, and the next canvas.
        self.most = config.sliding_window + CHUNK + config.canvas_length
        self.whole = 0 if form is None else max(token_bytes(layer, dtype.itemsize) for layer in full)

    def __call__(self, tokens: int, canvas_tokens: int = 0) -> int:
        cache = capacity(tokens) * self.full + capacity(min(tokens, self.most)) * self.sliding
        return cache + canvas_tokens * self.soft

    def room(self, tokens: int) -> int:
        """Bytes in which a forward makes one layer of a row whole, where that is needed (model/rounding.py: Room)."""
        return tokens * self.whole


def no_room(error: Exception, tokens: int) -> Exception:
    """Instead of an error of torch's that the memory does not suffice: one that says for what. Others stay."""
    if not isinstance(error, torch.OutOfMemoryError):
        return error
    return ScumbleError(
        f"the memory does not suffice for a pass of this request of {tokens} tokens: {str(error).splitlines()[0]}; "
        "shorten the prompt, ask for fewer candidates, or end what else uses the device"
    )


def too_little(tokens: int, needed: int, memory: int) -> InvalidRequest:
    return InvalidRequest(
        f"the request needs {size(needed)} for its {tokens} tokens, the engine has {size(memory)}; "
        "shorten the prompt or max_new_tokens"
    )

"""Attention: projections with their norms and rotary positions, and the two ways to attend.

Shapes: N tokens of all segments, n tokens of one segment, S keys it may see, H query heads, G kv heads, K head_dim.
`Attend` is the seam: the transformer hands it queries, keys and values of all tokens and gets the mixed values back.
Inference attends segment by segment over caches (here); training attends a batch with masks (train/attention.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import CDLL
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scumble.config import LayerConfig, ModelConfig
from scumble.kernels import fused
from scumble.model.layers import Linear, RMSNorm, norm_rope, rms_norm
from scumble.model.segment import Segment

# Beyond so many keys torch's attention serves: the kernel packs keys and values, which would hold too much memory.
FUSED_KEYS = 32_768


class Attend(Protocol):
    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """queries [N, H, K], keys and values [N, G, K] of layer number `layer` -> mixed values [N, H, K]."""
        ...


class Attention(nn.Module):
    """One layer's attention. Scores are not scaled (1.0): q_norm and k_norm bound them.

    A full-attention layer has no v_proj: its value is the raw key projection, normed without weight, not rotated.
    """

    def __init__(self, config: ModelConfig, layer: LayerConfig):
        super().__init__()
        self.head_dim = layer.head_dim
        heads, groups = config.num_attention_heads * layer.head_dim, layer.num_key_value_heads * layer.head_dim
        self.q_proj = Linear(config.hidden_size, heads)
        self.k_proj = Linear(config.hidden_size, groups)
        self.v_proj = Linear(config.hidden_size, groups) if layer.is_sliding else None
        self.o_proj = Linear(heads, config.hidden_size)
        self.q_norm = RMSNorm(layer.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(layer.head_dim, config.rms_norm_eps)
        self.eps = config.rms_norm_eps

    def forward(
        self, x: Tensor, index: int, rope: tuple[Tensor, Tensor], attend: Attend, heard: Tensor | None = None
    ) -> Tensor:
        """x [N, D] -> [N, D]; with `heard` [N] bool, only those tokens ask, and only theirs are returned."""
        raw_keys = self._heads(self.k_proj(x))
        keys = norm_rope(raw_keys, self.k_norm, *rope)
        values = rms_norm(raw_keys if self.v_proj is None else self._heads(self.v_proj(x)), None, self.eps)
        if heard is not None:
            x, rope = x[heard], (rope[0][heard], rope[1][heard])
            if not x.shape[0]:
                attend(index, keys[:0], keys, values)  # fills the caches
                return x
        queries = norm_rope(self._heads(self.q_proj(x)), self.q_norm, *rope)
        return self.o_proj(attend(index, queries, keys, values).flatten(1))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))


class SegmentAttention:
    """Attend segment by segment, each over its own cache. Only an encode segment writes.

    Segments are served in order, so a denoise segment sees what an encode segment of the same row, earlier in the
    same batch, has just appended in this layer. Quiet segments have no queries in the last layer.
    """

    def __init__(self, segments: Sequence[Segment], config: ModelConfig):
        self.segments = segments
        self.config = config

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        window = self.config.sliding_window if self.config.layers[layer].is_sliding else None
        last = layer == len(self.config.layers) - 1
        outputs = []
        start = asked = 0
        for segment in self.segments:
            part = slice(start, start + segment.tokens.shape[0])
            start = part.stop
            cache = segment.cache.layers[layer]
            if segment.quiet and last:
                cache.append(keys[part], values[part])
                continue
            asking = queries[asked : asked + segment.tokens.shape[0]]
            asked += segment.tokens.shape[0]
            take_up = cache.append if segment.mode == "encode" else cache.scratch
            seen = take_up(keys[part], values[part])
            all_see_all = segment.mode == "denoise"
            outputs.append(attend_all(asking, *seen) if all_see_all else attend_causal(asking, *seen, window))
        if not outputs:
            return queries
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def attend_all(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """queries [n, H, K] see all keys and values [G, S, K] -> [n, H, K]."""
    if (lib := _fused(queries, keys, values)) is not None:
        return fused.attention(lib, queries, keys, values, window=0)
    return attend_grouped(queries, keys, values, mask=None)


def attend_causal(queries: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
    """queries [n, H, K] of the last n of S tokens, each seeing what came before it inside the window -> [n, H, K]."""
    if (lib := _fused(queries, keys, values)) is not None:
        return fused.attention(lib, queries, keys, values, window=keys.shape[1] if window is None else window)
    mask = causal_mask(queries.shape[0], keys.shape[1], window, queries.device)
    return attend_grouped(queries, keys, values, mask=mask)


def _fused(queries: Tensor, keys: Tensor, values: Tensor) -> CDLL | None:
    """The kernels, where they may serve these."""
    if (keys.shape[1] > FUSED_KEYS and queries.shape[0] > 1) or keys.stride() != values.stride():
        return None
    return fused.serving(queries) if keys.dtype is queries.dtype else None


def causal_mask(n: int, seen: int, window: int | None, device: torch.device) -> Tensor | None:
    """True where query i of the last n of `seen` tokens may look [n, seen]; None where it may look everywhere."""
    if n == 1 and (window is None or seen <= window):
        return None
    query = torch.arange(seen - n, seen, device=device)[:, None]
    key = torch.arange(seen, device=device)
    mask = key <= query
    return mask if window is None else mask & (key > query - window)


def attend_grouped(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Grouped-query attention: queries [n, H, K] over keys and values [G, S, K] -> [n, H, K].

    The H/G query heads that share a key head become extra query rows of it, so keys are never repeated in memory.
    """
    n, heads, dim = queries.shape
    groups = keys.shape[0]
    share = heads // groups
    folded = queries.view(n, groups, share, dim).permute(1, 2, 0, 3).reshape(groups, share * n, dim)
    if mask is not None:
        mask = mask.repeat(share, 1)
    mixed = F.scaled_dot_product_attention(folded[None], keys[None], values[None], attn_mask=mask, scale=1.0)[0]
    return mixed.view(groups, share, n, dim).permute(2, 0, 1, 3).reshape(n, heads, dim)

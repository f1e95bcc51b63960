"""Attention: projections with their norms and rotary positions, and the two ways to attend.

Shapes: N tokens of all segments, n tokens of one segment, S keys it may see, H query heads, G kv heads, K head_dim.
`Attend` is the seam: the transformer hands it queries, keys and values of all tokens and gets the mixed values back.
Inference attends segment by segment over caches (here); training attends a batch with masks (train/attention.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scumble.config import LayerConfig, ModelConfig
from scumble.formats.floats import FloatWeight
from scumble.formats.weight import Weight, empty
from scumble.model.layers import RMSNorm
from scumble.model.rounding import Room
from scumble.model.segment import Segment
from scumble.ops import Ops
from scumble.ops.pages import Destination


class Attend(ABC):
    def destination(self, layer: int) -> Destination | None:
        """Where the keys and values of that layer are to be written as they are made; `__call__` is then handed that
        destination's pools. None: they are handed over as they are."""
        return None

    @abstractmethod
    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """queries [N, H, K], keys and values [N, G, K] of layer number `layer` -> mixed values [N, H, K]."""


class Attention(nn.Module):
    """One layer's attention. Scores are not scaled (1.0): q_norm and k_norm bound them.

    A full-attention layer has no v_proj: its value is the raw key projection, normed without weight, not rotated.
    """

    def __init__(self, config: ModelConfig, layer: LayerConfig, ops: Ops):
        super().__init__()
        self.ops = ops
        self.head_dim = layer.head_dim
        heads, groups = config.num_attention_heads * layer.head_dim, layer.num_key_value_heads * layer.head_dim
        self.q_proj: Weight = FloatWeight(empty(heads, config.hidden_size), ops)
        self.k_proj: Weight = FloatWeight(empty(groups, config.hidden_size), ops)
        self.v_proj: Weight | None = None
        if layer.is_sliding:
            self.v_proj = FloatWeight(empty(groups, config.hidden_size), ops)
        self.o_proj: Weight = FloatWeight(empty(config.hidden_size, heads), ops)
        self.q_norm = RMSNorm(layer.head_dim)
        self.k_norm = RMSNorm(layer.head_dim)
        self.eps = config.rms_norm_eps

    def forward(
        self, x: Tensor, index: int, rope: tuple[Tensor, Tensor], attend: Attend, heard: Tensor | None = None
    ) -> Tensor:
        """x [N, D] -> [N, D]; with `heard` [M] int64, only those tokens ask, and only theirs are returned."""
        projections, norms = (self.q_proj, self.k_proj, self.v_proj), (self.q_norm.weight, self.k_norm.weight)
        queries, keys, values = self.ops.heads(x, projections, norms, rope, self.eps, attend.destination(index), heard)
        mixed = attend(index, queries, keys, values)  # where nobody asks, it fills the caches
        return self.o_proj.product(mixed.flatten(1)) if queries.shape[0] else x[:0]


class SegmentAttention(Attend):
    """Attend segment by segment, each over its own cache. Only an encode segment writes.

    Segments are served in order, so a denoise segment sees what an encode segment of the same row, earlier in the
    same batch, has just appended in this layer. Quiet segments have no queries in the last layer.
    """

    def __init__(self, segments: Sequence[Segment], config: ModelConfig, ops: Ops):
        self.segments, self.config, self.ops, self.room = segments, config, ops, Room()

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
                cache.fill(cache.stored(keys[part], values[part]))
                continue
            asking = queries[asked : asked + segment.tokens.shape[0]]
            asked += segment.tokens.shape[0]
            take_up = {"encode": cache.append, "read": cache.read, "denoise": cache.beside}[segment.mode]
            first = cache.first
            seen = take_up(keys[part], values[part], self.room)
            if segment.mode == "denoise":
                outputs.append(self.ops.attend_all(asking, *seen, first))
            else:
                outputs.append(self.ops.attend_causal(asking, *seen, window, first))
        if not outputs:
            return queries
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

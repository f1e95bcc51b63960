"""How training attends: whole batches, differentiable, no cache. The layers are the ones that inference runs.

A row is encoded once, causally; its canvases then read the keys and values of exactly the tokens before each canvas.
Shapes: B rows, T tokens a row, C canvases of L tokens, H query heads, G kv heads, K head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scumble.config import ModelConfig
from scumble.model.attention import Attend
from scumble.ops.training import TrainingOps


class EncodeRows(Attend):
    """Causal attention inside each of B rows; remembers every layer's keys and values, [B, T, G, K]."""

    def __init__(self, config: ModelConfig, rows: int, ops: TrainingOps):
        self.config, self.rows, self.ops = config, rows, ops
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, k, v = (x.unflatten(0, (self.rows, -1)) for x in (queries, keys, values))
        self.keys.append(k)
        self.values.append(v)
        tokens = q.shape[1]
        window = self.config.sliding_window if self.config.layers[layer].is_sliding else tokens
        return self.ops.attend_batch(q, k, v, min(window, tokens)).flatten(0, 1)


class DenoiseCanvases(Attend):
    """Bidirectional attention of C canvases a row, each over the encoded tokens before it and itself."""

    def __init__(self, config: ModelConfig, encoded: EncodeRows, starts: list[int], length: int):
        self.config, self.encoded, self.starts, self.length = config, encoded, starts, length

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, k, v = (x.unflatten(0, (self.encoded.rows, -1)) for x in (queries, keys, values))  # [B, C·L, heads, K]
        past_k, past_v = self.encoded.keys[layer], self.encoded.values[layer]
        reach = self.config.sliding_window - 1 if self.config.layers[layer].is_sliding else None
        outputs = []
        for index, start in enumerate(self.starts):
            own = slice(index * self.length, (index + 1) * self.length)
            past = slice(0 if reach is None else max(0, start - reach), start)
            seen_k = torch.cat((past_k[:, past], k[:, own]), dim=1)
            seen_v = torch.cat((past_v[:, past], v[:, own]), dim=1)
            outputs.append(self.encoded.ops.attend_batch(q[:, own], seen_k, seen_v, 0))
        return torch.cat(outputs, dim=1).flatten(0, 1)

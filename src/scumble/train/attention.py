"""How training attends: whole batches, differentiable, no cache. The layers are the ones that inference runs.

A row is encoded once, causally; its canvases then read the keys and values of exactly the tokens before each canvas.
Shapes: B rows, T tokens a row, C canvases of L tokens, H query heads, G kv heads, K head_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scumble.config import ModelConfig
from scumble.model.attention import causal_mask


class EncodeRows:
    """Causal attention inside each of B rows; remembers every layer's keys and values."""

    def __init__(self, config: ModelConfig, rows: int):
        self.config, self.rows = config, rows
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, k, v = (_by_row(x, self.rows) for x in (queries, keys, values))
        self.keys.append(k)
        self.values.append(v)
        tokens = q.shape[2]
        window = self.config.sliding_window if self.config.layers[layer].is_sliding else None
        if window is None or tokens <= window:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0, enable_gqa=True)
        else:
            mask = causal_mask(tokens, tokens, window, q.device)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0, enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)


class DenoiseCanvases:
    """Bidirectional attention of C canvases a row, each over the encoded tokens before it and itself."""

    def __init__(self, config: ModelConfig, encoded: EncodeRows, starts: list[int], length: int):
        self.config, self.encoded, self.starts, self.length = config, encoded, starts, length

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, k, v = (_by_row(x, self.encoded.rows) for x in (queries, keys, values))  # [B, heads, C·L, K]
        past_k, past_v = self.encoded.keys[layer], self.encoded.values[layer]
        reach = self.config.sliding_window - 1 if self.config.layers[layer].is_sliding else None
        outputs = []
        for index, start in enumerate(self.starts):
            own = slice(index * self.length, (index + 1) * self.length)
            past = slice(0 if reach is None else max(0, start - reach), start)
            seen_k = torch.cat((past_k[:, :, past], k[:, :, own]), dim=2)
            seen_v = torch.cat((past_v[:, :, past], v[:, :, own]), dim=2)
            outputs.append(F.scaled_dot_product_attention(q[:, :, own], seen_k, seen_v, scale=1.0, enable_gqa=True))
        return torch.cat(outputs, dim=2).transpose(1, 2).flatten(0, 1)


def _by_row(x: Tensor, rows: int) -> Tensor:
    """[B·T, heads, K] -> [B, heads, T, K]"""
    return x.view(rows, -1, *x.shape[1:]).transpose(1, 2)

"""Greedy autoregressive decoding of many prompts of one length at once: how a teacher writes a batch's answers.

The engine serves rows that come, go and differ; here all rows are alike, so a step is one product of all of them with
every weight. Same ids as the engine's, but for what rounding does to two tokens that are about as likely.
Shapes: B rows, n tokens of a prompt, G kv heads, K head_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scumble.config import ModelConfig
from scumble.kernels import fused
from scumble.model import Transformer
from scumble.train.attention import attend


class _Rows:
    """Causal attention of B rows over all that they have been given so far; room for `most` tokens a row."""

    def __init__(self, config: ModelConfig, rows: int, most: int, like: Tensor):
        self.config, self.rows, self.length = config, rows, 0
        self.layers = [
            like.new_empty(2, rows, most, layer.num_key_value_heads, layer.head_dim) for layer in config.layers
        ]

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, k, v = (x.unflatten(0, (self.rows, -1)) for x in (queries, keys, values))
        end = self.length + q.shape[1]
        self.layers[layer][0, :, self.length : end] = k
        self.layers[layer][1, :, self.length : end] = v
        window = self.config.sliding_window if self.config.layers[layer].is_sliding else end
        if q.shape[1] > 1:
            return attend(q, k, v, min(window, end)).flatten(0, 1)
        seen = self.layers[layer][:, :, max(0, end - window) : end].transpose(2, 3)
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), seen[0], seen[1], scale=1.0, enable_gqa=True)
        return mixed[:, :, 0]

    def keep(self, rows: Tensor) -> None:
        self.layers = [layer[:, rows] for layer in self.layers]
        self.rows = rows.shape[0]


@torch.no_grad()
def greedy(model: Transformer, prompts: Tensor, longest: int) -> list[list[int]]:
    """What the model writes behind each of prompts [B, n] at temperature 0: 1 to `longest` ids, up to an end id."""
    rows, size = prompts.shape
    attention = _Rows(model.config, rows, size + longest, model.embed_tokens.weight)

    def finished(answer: list[int]) -> bool:
        return len(answer) == longest or (bool(answer) and answer[-1] in model.config.eos_token_ids)

    answers: list[list[int]] = [[] for _ in range(rows)]
    live, tokens = torch.arange(rows), prompts.to(model.device)
    while True:
        count = tokens.shape[1]
        positions = torch.arange(attention.length, attention.length + count, device=model.device).repeat(len(live))
        encode = torch.zeros(tokens.numel(), 1, dtype=torch.bool, device=model.device)
        hidden = model.body(model.embed(tokens.flatten()), positions, encode, attention)
        attention.length += count
        last = hidden.unflatten(0, (len(live), count))[:, -1].contiguous()
        chosen = fused.linear(last, model.embed_tokens.weight).argmax(-1)  # the soft-cap keeps the order
        for row, token in zip(live.tolist(), chosen.tolist(), strict=True):
            if not finished(answers[row]):
                answers[row].append(token)
        unfinished = torch.tensor([not finished(answers[row]) for row in live.tolist()])
        if not bool(unfinished.any()):
            return answers
        if int(unfinished.sum()) <= len(live) // 2:  # finished rows are dragged along until half of them are
            kept = unfinished.nonzero()[:, 0]
            attention.keep(kept.to(model.device))
            live, chosen = live[kept], chosen[kept.to(model.device)]
        tokens = chosen[:, None]

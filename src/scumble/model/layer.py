"""One layer of the transformer, the same in both modes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scumble.config import LayerConfig, ModelConfig
from scumble.formats.weight import ExpertWeights
from scumble.model.attention import Attend, Attention
from scumble.model.experts import Router, float_experts
from scumble.model.layers import GatedMLP, RMSNorm
from scumble.ops import Ops


class Layer(nn.Module):
    """Attention, then a dense MLP and a mixture of experts side by side, each between norms of its own."""

    layer_scalar: Tensor
    encode_layer_scalar: Tensor

    def __init__(self, config: ModelConfig, layer: LayerConfig, ops: Ops):
        super().__init__()
        size = config.hidden_size
        self.kind, self.eps, self.ops = layer.kind, config.rms_norm_eps, ops
        self.self_attn = Attention(config, layer, ops)
        self.mlp = GatedMLP(size, config.intermediate_size, ops)
        self.router = Router(config, ops)
        self.experts: ExpertWeights = float_experts(config, ops)
        self.input_layernorm = RMSNorm(size)
        self.post_attention_layernorm = RMSNorm(size)
        self.pre_feedforward_layernorm = RMSNorm(size)
        self.post_feedforward_layernorm = RMSNorm(size)
        self.pre_feedforward_layernorm_2 = RMSNorm(size)
        self.post_feedforward_layernorm_1 = RMSNorm(size)
        self.post_feedforward_layernorm_2 = RMSNorm(size)
        # The only weights the two modes do not share. Constants of the checkpoint, not trained.
        self.register_buffer("layer_scalar", torch.ones(1))
        self.register_buffer("encode_layer_scalar", torch.ones(1))

    def forward(
        self,
        x: Tensor,
        index: int,
        rope: tuple[Tensor, Tensor],
        attend: Attend,
        denoise: Tensor,
        heard: Tensor | None = None,
    ) -> Tensor:
        """x [N, D] -> [N, D]; with `heard` [M] int64, the result has only those tokens (the caches get all)."""
        ops, eps = self.ops, self.eps
        normed = ops.norm_for_products(x, self.input_layernorm.weight, eps)
        attended = self.self_attn(normed, index, rope, attend, heard)
        if heard is not None:
            x, denoise = x[heard], denoise[heard]
            if not x.shape[0]:
                return x
        h, for_mlp, for_experts = ops.attention_tail(
            x, attended, self.post_attention_layernorm.weight, self.pre_feedforward_layernorm.weight,
            self.pre_feedforward_layernorm_2.weight, eps,
        )  # fmt: skip
        dense = self.mlp(for_mlp)
        weights, experts, _ = self.router(h)  # reads the raw residual
        mixed = self.experts(for_experts, weights, experts)
        after = (self.post_feedforward_layernorm_1, self.post_feedforward_layernorm_2, self.post_feedforward_layernorm)
        return ops.layer_tail(
            h, (dense, mixed), (after[0].weight, after[1].weight, after[2].weight), denoise,
            (self.layer_scalar, self.encode_layer_scalar), eps,
        )  # fmt: skip

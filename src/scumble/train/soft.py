"""The self-conditioning signal of a first pass in training: soft embeddings, tempered as the sampler tempers them."""

from __future__ import annotations

import torch
from torch import Tensor

from scumble.model import Transformer
from scumble.ops import softcap
from scumble.ops.quick import multiplies_bfloat16

ROWS = 1024  # positions whose distributions are held at a time


def soft_embeddings(model: Transformer, hidden: Tensor, level: Tensor, t_min: float, t_max: float) -> Tensor:
    """Probability-weighted means of embeddings [N, D] float32, from the hidden states [N, D] of a first pass.

    level: the noise level of each canvas, 0 … 1; in use a canvas of that much noise has the temperature
    t_min + (t_max - t_min) · level.
    """
    length = hidden.shape[0] // level.numel()
    temperature = (t_min + (t_max - t_min) * level).flatten().repeat_interleave(length)[:, None]
    weight, kind = model.embed_tokens.weight, hidden.device.type
    as_around = torch.is_autocast_enabled(kind) and multiplies_bfloat16(hidden.device)
    soft = []
    with torch.autocast(kind, enabled=as_around):
        for rows, heat in zip(hidden.to(weight.dtype).split(ROWS), temperature.split(ROWS), strict=True):
            z = softcap((rows @ weight.T).float(), model.config.final_logit_softcapping) / heat
            soft.append((torch.log_softmax(z, dim=-1).exp().to(rows.dtype) @ weight).float())
    return torch.cat(soft)

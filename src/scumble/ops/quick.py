"""Where torch's own products in bfloat16 are worth their halved memory."""

from __future__ import annotations

import torch


def multiplies_bfloat16(device: torch.device) -> bool:
    """False on a processor without instructions for bfloat16: there float32 is forty times quicker."""
    return device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()

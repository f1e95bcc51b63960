"""Native kernels for CPUs with AVX2, or better AVX-512 BF16 and VNNI, as a backend of ops/choose.py."""

from __future__ import annotations

import torch

from scumble.config import ModelConfig
from scumble.ops.cpu.native import lacking, library, why_not
from scumble.ops.cpu.ops import CpuOps


def unfit(device: torch.device, dtype: torch.dtype, config: ModelConfig | None) -> str | None:
    """Why the kernels cannot serve a model here; None: they can. Compiles them at first use."""
    if device.type != "cpu":
        return f"the device is {device.type}"
    if dtype is not torch.bfloat16:
        # A model may be in float32 because there are no kernels; then that is the reason worth saying.
        return lacking() or f"the model is in {str(dtype).removeprefix('torch.')}, the kernels read bfloat16"
    sizes = {} if config is None else _even(config)
    odd = [f"{name} is {size}" for name, size in sizes.items() if size % 2]
    if odd:
        return f"{odd[0]}, the kernels take numbers in pairs"
    return why_not()


def _even(config: ModelConfig) -> dict[str, int]:
    """Sizes that must be even."""
    names = ("hidden_size", "intermediate_size", "moe_intermediate_size")
    return {name: getattr(config, name) for name in names}


def make(device: torch.device, dtype: torch.dtype, config: ModelConfig | None) -> CpuOps:
    lib = library()
    assert lib is not None
    return CpuOps(lib)

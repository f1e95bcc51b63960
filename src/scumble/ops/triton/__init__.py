"""Kernels for NVIDIA cards, in Triton: one operation a file, its plain torch reference below it.

Rules that every kernel keeps, so that a row's numbers are the same alone and in any batch:
  - the order of a sum is fixed by the weight's shape, never by how many rows there are: no atomics, no split by rows;
  - tile sizes come from a table (tiles.toml) by card and operation; nothing is tuned while it runs;
  - whatever differs from pass to pass (counts, bounds, lists) is read from device memory, so that a captured CUDA
    graph can be replayed, and no host code waits for the device;
  - whole numbers that differ from call to call are no constants, and not specialized (`do_not_specialize`): Triton
    would compile a kernel anew for a 1 or a multiple of 16, in the middle of serving or of a graph's capture;
  - a number that is none is never lost on the way (a maximum passes over it): the engine looks for it at the end;
  - statistics are float32 or better; results are rounded where the reference rounds.

docs/gpu.md says what has been proved about them, how, and what has not.

Triton is an extra; nothing here is imported before a card is there.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import TYPE_CHECKING

import torch

from scumble.config import ModelConfig

if TYPE_CHECKING:
    from scumble.ops.triton.ops import TritonOps


def unfit(device: torch.device, dtype: torch.dtype, config: ModelConfig | None) -> str | None:
    """Why the kernels cannot serve a model here; None: they can. As a backend of ops/choose.py."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    if dtype not in (torch.bfloat16, torch.float32):
        return f"the model is in {str(dtype).removeprefix('torch.')}, the kernels read bfloat16 and float32"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install scumble[gpu])"
    if torch.version.hip is not None:
        return "the card is AMD's, the kernels are checked for NVIDIA's"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"the card has compute capability {capability[0]}.{capability[1]}, the kernels need 8.0"
    return None


def make(device: torch.device, dtype: torch.dtype, config: ModelConfig | None) -> TritonOps:
    """The operations, less those that fail their check on this card."""
    from scumble.ops.triton.ops import TritonOps
    from scumble.ops.triton.selfcheck import format_fault, refused

    if config is None:
        return TritonOps(device=device)
    return TritonOps(refused(device, dtype, config), device, partial(format_fault, device, dtype, config))

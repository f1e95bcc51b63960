"""In which precision a model computes while it is trained, and with which operations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from scumble.model import Transformer
from scumble.ops.cpu.native import library
from scumble.ops.cpu.training.ops import CpuTraining
from scumble.ops.training import PLAIN_TRAINING, TrainingOps


@contextmanager
def precision(model: Transformer, bfloat16: bool, ops: TrainingOps | None = None) -> Iterator[None]:
    """Forwards inside compute with `ops` (None: the quickest there are), bfloat16: with products in bfloat16."""
    before = model.ops
    model.use(ops or choose_training(model.device, bfloat16))
    try:
        with torch.autocast(model.device.type, torch.bfloat16) if bfloat16 else nullcontext():
            yield
    finally:
        model.use(before)


def choose_training(device: torch.device, bfloat16: bool) -> TrainingOps:
    """For training on a device; bfloat16: in mixed precision, for which CPUs may have native kernels."""
    if bfloat16 and device.type == "cpu" and os.environ.get("SCUMBLE_OPS", "auto") in ("auto", "cpu"):
        lib = library()
        if lib is not None:
            return CpuTraining(lib)
    return PLAIN_TRAINING


def training_ops(model: Transformer) -> TrainingOps:
    """What `precision` set; outside of it plain torch."""
    return model.ops if isinstance(model.ops, TrainingOps) else PLAIN_TRAINING

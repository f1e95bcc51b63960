"""Checkpoint folders in the released format: load, save. Weights come from safetensors only."""

from scumble.checkpoint.load import (
    Contents,
    load_checkpoint,
    load_config,
    read_contents,
    read_generation_config,
)
from scumble.checkpoint.save import save_checkpoint
from scumble.model.load_report import LoadReport

__all__ = [
    "Contents",
    "LoadReport",
    "load_checkpoint",
    "load_config",
    "read_contents",
    "read_generation_config",
    "save_checkpoint",
]

"""What a training run must remember to go on as if nothing had happened: one safetensors file, replaced atomically."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scumble.errors import DataError
from scumble.model import Transformer
from scumble.train.corpus.atomic import atomic_file

NAME = "state.safetensors"


@dataclass
class Progress:
    """step: optimizer steps done. tokens: document tokens seen. seconds: of training, over all pieces."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    flops: float = 0.0


def save_state(
    folder: Path, model: Transformer, optimizer: torch.optim.Optimizer, progress: Progress, about: dict[str, Any]
) -> None:
    """Weights, both moments of every weight, and the progress. `about` identifies the run (see load_state)."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach().cpu()
        for kind, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{kind}.{name}"] = torch.as_tensor(value).detach().cpu()
    metadata = {"progress": json.dumps(vars(progress)), "about": json.dumps(about, sort_keys=True)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / NAME) as stream:
            save_file(tensors, stream.name, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{folder}: the training state cannot be written: {error}; free some space and resume"
        ) from None


def load_state(
    folder: Path, model: Transformer, optimizer: torch.optim.Optimizer, about: dict[str, Any]
) -> Progress | None:
    """Restore the last state into model and optimizer; None when there is none.

    Raises DataError when the file is damaged or belongs to a run with another configuration.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as handle:
            metadata = handle.metadata() or {}
            stored = json.loads(metadata.get("about", "{}"))
            if different := [name for name in about if stored.get(name) != about[name]]:
                raise DataError(
                    f"{path}: was made with another {different[0]} ({stored.get(different[0])!r}, "
                    f"now {about[different[0]]!r}); change run.out, or put the old value back"
                )
            names = set(handle.keys())
            for name, parameter in model.named_parameters():
                with torch.no_grad():
                    parameter.copy_(handle.get_tensor(f"weight.{name}"))
                moments = [kind for kind in ("step", "exp_avg", "exp_avg_sq") if f"{kind}.{name}" in names]
                if moments:
                    optimizer.state[parameter] = {
                        kind: handle.get_tensor(f"{kind}.{name}").to(parameter.device) for kind in moments
                    }
            return Progress(**json.loads(metadata["progress"]))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a whole training state: {error}; remove it to start again") from None

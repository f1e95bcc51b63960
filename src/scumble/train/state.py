"""What a training run must remember to go on as if nothing had happened: one safetensors file, replaced atomically."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scumble.errors import DataError
from scumble.model import Transformer
from scumble.train.atomic import atomic_file

NAME = "state.safetensors"
NO_INIT, SOME_INIT = "", "a checkpoint"  # what is remembered of run.init: folders move between machines
# What older versions could do; 0 in a state: it did not.
GONE = ("objective.distill_share", "objective.trajectory_share", "run.grow")


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
    """Weights, both moments of every weight, and the progress. `about` identifies the run (see load_state).

    Raises DataError, and leaves the state saved before as it is, when a weight is not finite or the disk is full.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise DataError(
                f"step {progress.step}: {name} must be finite, found infinity or NaN; the state saved before stays: "
                "lower optimizer.rate and run the same command again"
            )
        tensors[f"weight.{name}"] = parameter.detach().cpu()
        for kind, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{kind}.{name}"] = torch.as_tensor(value).detach().cpu()
    metadata = {"progress": json.dumps(vars(progress)), "about": json.dumps(about, sort_keys=True)}
    try:
        with atomic_file(folder / NAME) as stream:
            save_file(tensors, stream.name, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{folder}: the training state cannot be written: {error}; make room there and run the same command again"
        ) from None


def load_state(
    folder: Path,
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    about: dict[str, Any],
    defaults: dict[str, Any],
) -> Progress:
    """Restore the last state into model and optimizer; step 0 when there is none.

    defaults: what a name means that the file lacks, because the option is younger than the file.
    Raises DataError when the file is damaged or belongs to a run with another configuration.
    """
    if not (folder / NAME).exists():
        return Progress()
    with _open_state(folder) as (handle, metadata):
        stored = {**defaults, **json.loads(metadata["about"])}
        # Old files do not say it, but only a run that began from a checkpoint has no sizes of a model.
        stored.setdefault("run.init", NO_INIT if "model.hidden_size" in stored else SOME_INIT)
        if different := [name for name in about if stored.get(name) != about[name]]:
            raise DataError(
                f"{folder / NAME}: was made with another {different[0]} ({stored.get(different[0])!r}, "
                f"now {about[different[0]]!r}); change run.out, or put the old value back"
            )
        if gone := [name for name in GONE if stored.get(name)]:
            raise DataError(
                f"{folder / NAME}: was made with {gone[0]} = {stored[gone[0]]}, which is no longer there; "
                "change run.out"
            )
        names = set(handle.keys())
        for name, parameter in model.named_parameters():
            weight = handle.get_tensor(f"weight.{name}")
            if weight.shape != parameter.shape:
                raise DataError(
                    f"{folder / NAME}: {name} has the shape {list(weight.shape)}, the configuration's model "
                    f"{list(parameter.shape)}; change run.out, or put the old data.tokenizer and run.init back"
                )
            with torch.no_grad():
                parameter.copy_(weight)
            moments = [kind for kind in ("step", "exp_avg", "exp_avg_sq") if f"{kind}.{name}" in names]
            if moments:
                optimizer.state[parameter] = {
                    kind: handle.get_tensor(f"{kind}.{name}").to(parameter.device) for kind in moments
                }
        return Progress(**json.loads(metadata["progress"]))


def read_progress(folder: Path) -> Progress:
    """How far the last saved state is; step 0 when there is none. Raises DataError when the file is damaged."""
    if not (folder / NAME).exists():
        return Progress()
    with _open_state(folder) as (_, metadata):
        return Progress(**json.loads(metadata["progress"]))


@contextmanager
def _open_state(folder: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """The file's tensors and its metadata; a DataError for whatever a damaged file makes of reading it."""
    path = folder / NAME
    try:
        with safe_open(str(path), framework="pt") as handle:
            yield handle, handle.metadata() or {}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a whole training state: {error}; remove it to start again") from None

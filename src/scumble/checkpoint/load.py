"""Load a DiffusionGemma checkpoint folder: the text model only, from safetensors only, one tensor at a time."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scumble.checkpoint.files import DTYPES, Stored, find_tensors, open_weights
from scumble.checkpoint.names import ENCODER, HEAD, VISION, candidates
from scumble.config import ModelConfig, parse_model_config, read_json
from scumble.errors import CheckpointError
from scumble.model import Transformer

log = logging.getLogger("scumble")

MAPPED_AT_ONCE = 256 * 2**20  # bytes; how much of a file may stay mapped while its tensors are converted


@dataclass(frozen=True)
class LoadReport:
    """What loading left out or made up. Bytes as stored.

    vision_tensors, vision_bytes: the vision tower, which a text model does not use.
    tied_copies: keys that repeat a weight that was loaded under another key.
    unknown: keys that this architecture does not have; ignored.
    assumed: weights that the file lacks and that were set from others (see the key's name).
    """

    weight_bytes: int
    vision_tensors: int = 0
    vision_bytes: int = 0
    tied_copies: int = 0
    unknown: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """What a person should know, one sentence a line; empty when there is nothing to say."""
        out = []
        if self.vision_tensors:
            out.append(
                f"text only: left out the vision tower ({self.vision_tensors} tensors, "
                f"{self.vision_bytes / 1e6:.1f} MB); images cannot be used"
            )
        if self.assumed:
            out.append(f"not in the file, set equal to their denoise counterparts: {', '.join(self.assumed[:4])} …")
        if self.unknown:
            out.append(f"ignored {len(self.unknown)} unknown tensors: {', '.join(self.unknown[:4])}")
        return out


def load_config(path: str | Path) -> ModelConfig:
    """The ModelConfig of a checkpoint folder, without its weights."""
    folder = Path(path)
    generation = folder / "generation_config.json"
    raw = read_json(folder / "config.json")
    if "eos_token_id" not in raw and generation.exists():  # where the release keeps its list of end ids
        eos = read_json(generation).get("eos_token_id")
        if eos is not None:
            raw = {**raw, "eos_token_id": eos}
    return parse_model_config(raw)


def read_generation_config(folder: Path) -> dict[str, Any]:
    """Settings stored in a folder's `generation_config.json`, by the names of GenerationConfig; nulls are unset."""
    path = folder / "generation_config.json"
    if not path.exists():
        return {}
    raw = read_json(path)
    names = (
        "max_new_tokens", "max_denoising_steps", "t_min", "t_max", "stability_threshold", "confidence_threshold",
    )  # fmt: skip
    out = {name: raw[name] for name in names if raw.get(name) is not None}
    sampler = raw.get("sampler_config")
    if isinstance(sampler, dict) and sampler.get("entropy_bound") is not None:
        out["entropy_bound"] = sampler["entropy_bound"]
    return out


def load_checkpoint(
    path: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Transformer:
    """The model in a released-format folder, in `dtype` (None: as stored), ready for inference.

    Weights are read through a memory map. When nothing is to be converted they stay mapped: the pages are the only
    copy. Raises CheckpointError, with the key, what was expected and what was found.
    The result has `.config` (ModelConfig) and `.load_report` (LoadReport).
    """
    folder = Path(path)
    tensors = find_tensors(folder)
    config = load_config(folder)
    with torch.device("meta"):
        model = Transformer(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    plan, assumed = _plan(wanted, tensors, folder)
    weights = _read(plan, dtype, torch.device(device))
    for name in assumed:
        weights[name] = weights[name.replace("encode_layer_scalar", "layer_scalar")].clone()
    model.load_state_dict(weights, assign=True)
    model.eval().requires_grad_(False)
    model.load_report = _report(plan, tensors, assumed, weights)
    for line in model.load_report.lines():
        log.info("%s: %s", folder.name, line)
    return model


def _plan(
    wanted: dict[str, tuple[int, ...]], tensors: dict[str, Stored], folder: Path
) -> tuple[dict[str, Stored], list[str]]:
    """Which stored tensor serves which weight; raises for what is missing or has the wrong shape or format."""
    plan: dict[str, Stored] = {}
    assumed, missing = [], []
    for name, shape in wanted.items():
        stored = next((tensors[key] for key in candidates(name) if key in tensors), None)
        if stored is None:
            (assumed if name.endswith(".encode_layer_scalar") else missing).append(name)
            continue
        if stored.shape != shape:
            raise CheckpointError(
                f"{folder}: {stored.key} has the wrong shape: expected {list(shape)} by config.json, "
                f"found {list(stored.shape)}"
            )
        if stored.dtype not in DTYPES:
            raise CheckpointError(
                f"{folder}: {stored.key} has number format {stored.dtype}; expected one of {', '.join(DTYPES)}"
            )
        plan[name] = stored
    if missing:
        named = ", ".join(candidates(name)[0] for name in missing[:5])
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(wanted)} weights are missing: {named}{' …' if len(missing) > 5 else ''}"
        )
    return plan, assumed


def _read(plan: dict[str, Stored], dtype: torch.dtype | None, device: torch.device) -> dict[str, Tensor]:
    """Tensors by weight name. The map is closed every few tensors, so converted pages do not pile up in memory."""
    out: dict[str, Tensor] = {}
    by_file = sorted(plan.items(), key=lambda item: (str(item[1].file), item[0]))
    for file, items in groupby(by_file, key=lambda item: item[1].file):
        for batch in _batches(list(items)):
            with open_weights(file) as handle:
                for name, stored in batch:
                    out[name] = handle.get_tensor(stored.key).to(device=device, dtype=dtype or DTYPES[stored.dtype])
    return out


def _batches(items: list[tuple[str, Stored]]) -> list[list[tuple[str, Stored]]]:
    batches: list[list[tuple[str, Stored]]] = []
    room = 0
    for item in items:
        if room < item[1].nbytes or not batches:
            batches.append([])
            room = MAPPED_AT_ONCE
        batches[-1].append(item)
        room -= item[1].nbytes
    return batches


def _report(
    plan: dict[str, Stored], tensors: dict[str, Stored], assumed: list[str], weights: dict[str, Tensor]
) -> LoadReport:
    used = {stored.key for stored in plan.values()}
    known = {key for name in weights for key in candidates(name)}
    left = [stored for key, stored in tensors.items() if key not in used]
    vision = [stored for stored in left if stored.key.startswith(VISION)]
    copies = [stored for stored in left if stored.key in known or stored.key in (HEAD, ENCODER + "norm.weight")]
    named = {stored.key for stored in [*vision, *copies]}
    return LoadReport(
        weight_bytes=sum(tensor.numel() * tensor.element_size() for tensor in weights.values()),
        vision_tensors=len(vision),
        vision_bytes=sum(stored.nbytes for stored in vision),
        tied_copies=len(copies),
        unknown=tuple(sorted(stored.key for stored in left if stored.key not in named)),
        assumed=tuple(assumed),
    )

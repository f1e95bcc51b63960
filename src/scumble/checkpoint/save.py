"""Write a checkpoint folder in the released format. Every file appears whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from scumble.checkpoint.files import INDEX, WEIGHTS
from scumble.checkpoint.names import checkpoint_key
from scumble.config import write_model_config
from scumble.errors import CheckpointError
from scumble.model import Transformer

SHARD_BYTES = 5 * 10**9


def save_checkpoint(
    model: Transformer,
    path: str | Path,
    generation_config: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `config.json`, `model.safetensors` (or shards with an index) and `generation_config.json` to a folder.

    generation_config: names of GenerationConfig and values; it is stored in the form that `transformers` reads.
    Raises CheckpointError when the folder cannot be written (a full disk, say); files already there stay as they were.
    """
    folder = Path(path)
    tensors = {checkpoint_key(name): tensor.detach() for name, tensor in model.state_dict().items()}
    dtype = str(model.dtype).removeprefix("torch.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_weights(tensors, folder, shard_bytes)
        write_json(folder / "config.json", write_model_config(model.config, dtype))
        if generation_config is not None:
            write_json(folder / "generation_config.json", _stored_generation_config(generation_config, model))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: cannot be written: {error}") from None


def _write_weights(tensors: dict[str, Tensor], folder: Path, shard_bytes: int) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    room = shard_bytes
    for key, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if size > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][key] = tensor.contiguous().cpu()
        room -= size
    if len(shards) == 1:
        _write_shard(shards[0], folder / WEIGHTS)
        (folder / INDEX).unlink(missing_ok=True)
        return
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        _write_shard(shard, folder / name)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    (folder / WEIGHTS).unlink(missing_ok=True)


def _write_shard(shard: dict[str, Tensor], path: Path) -> None:
    replace_file(path, lambda temporary: save_file(shard, temporary, metadata={"format": "pt"}))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    replace_file(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def replace_file(path: Path, write: Callable[[str], Any]) -> None:
    """Write beside `path`, flush to disk, then rename: a reader sees the old file or the new one, never half."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(temporary)
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _stored_generation_config(config: Mapping[str, Any], model: Transformer) -> dict[str, Any]:
    out = {name: value for name, value in config.items() if value is not None and name != "entropy_bound"}
    if config.get("entropy_bound") is not None:
        out["sampler_config"] = {"entropy_bound": config["entropy_bound"], "_cls_name": "EntropyBoundSamplerConfig"}
    eos = list(model.config.eos_token_ids)
    out.update(
        eos_token_id=eos if len(eos) != 1 else eos[0],
        bos_token_id=model.config.bos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    return out

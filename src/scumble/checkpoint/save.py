"""Write a checkpoint folder in the released format. Its files change all together, at the end, or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
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
    if model.quantized is not None:
        raise CheckpointError(
            f"{folder}: a model in {model.quantized} cannot be saved; load it in bfloat16 or float32 to save it"
        )
    tensors = {checkpoint_key(name): tensor.detach() for name, tensor in model.state_dict().items()}
    dtype = str(model.dtype).removeprefix("torch.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with Staging(folder) as staging:
            weight_files = _write_weights(tensors, staging, shard_bytes)
            staging.json("config.json", write_model_config(model.config, dtype))
            if generation_config is not None:
                staging.json("generation_config.json", _stored_generation_config(generation_config, model))
        for other in {INDEX, WEIGHTS} - weight_files:  # the old weights, in the other form
            (folder / other).unlink(missing_ok=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be written: {error}") from None


class Staging:
    """Files written beside their places, and moved there all together at the end, or not at all.

    A disk that fills up, a kill or an error before that leaves the folder's files as they were.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._temporary: dict[str, Path] = {}

    def write(self, name: str, write: Callable[[str], Any]) -> None:
        """`write` is called with the path to write to; the bytes are on disk before this returns."""
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=f".{name}.")
        os.close(handle)
        self._temporary[name] = Path(temporary)
        write(temporary)
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)

    def json(self, name: str, value: Mapping[str, Any]) -> None:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        self.write(name, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                for name, temporary in self._temporary.items():
                    os.replace(temporary, self.folder / name)
        finally:
            for temporary in self._temporary.values():
                temporary.unlink(missing_ok=True)


def _write_weights(tensors: dict[str, Tensor], staging: Staging, shard_bytes: int) -> set[str]:
    """Stage the weights in one file, or in shards and an index; returns the names of the staged files."""
    shards: list[dict[str, Tensor]] = [{}]
    room = shard_bytes
    for key, tensor in tensors.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][key] = tensor
        room -= tensor.nbytes
    count = len(shards)
    names = [WEIGHTS] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    for name, shard in zip(names, shards, strict=True):
        staging.write(name, partial(_save_shard, shard))
    if count == 1:
        return {WEIGHTS}
    total = sum(tensor.nbytes for tensor in tensors.values())
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    staging.json(INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return {*names, INDEX}


def _save_shard(shard: dict[str, Tensor], path: str) -> None:
    save_file({key: tensor.contiguous().cpu() for key, tensor in shard.items()}, path, metadata={"format": "pt"})


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

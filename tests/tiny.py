"""The small, seeded, random model that the core's tests run on, and a tokenizer and folders to go with it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from scumble import GenerationConfig
from scumble.checkpoint import save_checkpoint
from scumble.config import LayerConfig, ModelConfig
from scumble.decode import Answer, PassDone, Request, TokensCommitted, make_request
from scumble.diffusion import SeededNoise
from scumble.engine import Engine, Event, Failed
from scumble.model import Transformer

SLIDING = LayerConfig("sliding_attention", 8, 2)
FULL = LayerConfig("full_attention", 16, 1)
EOS = 1


def tiny_config(**changes: Any) -> ModelConfig:
    """Both layer kinds, a window of 6, a canvas of 8, 4 experts of which 2 run, 97 ids; the end id is 1."""
    values: dict[str, Any] = {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 24, "num_attention_heads": 4, "num_experts": 4,
        "top_k_experts": 2, "moe_intermediate_size": 12, "layers": (SLIDING, SLIDING, FULL), "sliding_window": 6,
        "max_position_embeddings": 4096, "canvas_length": 8, "eos_token_ids": (EOS,), "image_token_id": None,
    }  # fmt: skip
    return ModelConfig(**(values | changes))


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Transformer:
    """Every weight random, logits spread over several nats, so that rules have something to decide."""
    model = Transformer(tiny_config(**changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in [*model.named_parameters(), *model.named_buffers()]:
            noise = torch.randn(weight.shape, generator=generator)
            near_one = "norm" in name or name.endswith(("scale", "scalar"))
            weight.copy_(1 + 0.1 * noise if near_one else 0.3 * noise)
    return model.to(dtype).eval().requires_grad_(False)


def answer(
    model: Transformer,
    prompts: list[list[int]],
    configs: GenerationConfig | list[GenerationConfig],
    **inputs: Any,
) -> list[dict[str, Any]]:
    """Run requests side by side through the engine -> per row: ids, events, answer. inputs: draft, pinned (one row)."""
    if isinstance(configs, GenerationConfig):
        configs = [configs] * len(prompts)
    requests = [make_request(p, c, {}, model.config, **inputs) for p, c in zip(prompts, configs, strict=True)]
    return run(Engine(model), requests)


def run(engine: Engine, requests: list[Request]) -> list[dict[str, Any]]:
    """Step an engine until all requests are answered -> per row: ids, events, answer. Raises what a row failed with."""
    rows: list[dict[str, Any]] = [{"ids": [], "passes": [], "commits": [], "answer": None} for _ in requests]
    for row, request in zip(rows, requests, strict=True):
        engine.add(request, partial(_note, row), drafts=True)
    while engine.has_work:
        engine.step()
    return rows


def _note(row: dict[str, Any], event: Event) -> None:
    if isinstance(event, PassDone):
        row["passes"].append(event)
    elif isinstance(event, TokensCommitted):
        row["commits"].append(event)
        row["ids"] += event.ids
    elif isinstance(event, Failed):
        raise event.error
    else:
        assert isinstance(event, Answer)
        row["answer"] = event


def prompt(length: int, seed: int = 0, vocab: int = 97) -> list[int]:
    return [2 + int(i) % (vocab - 2) for i in SeededNoise(seed).initial(0, length, 10**6)]


SPECIAL = ["<pad>", "<eos>", "<bos>"]


def tiny_tokenizer() -> Backend:
    """Byte-level BPE over a line or two: pad 0, eos 1, bos 2, then 256 bytes and some merges."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the canvas is painted thin, layer over layer; der Malgrund bleibt sichtbar"], trainer)
    return backend


def save_folder(folder: Path, model: Transformer, tokenizer: bool = False, **settings: Any) -> Path:
    """A checkpoint folder in the released format, with settings for generation_config.json."""
    save_checkpoint(model, folder, settings or None)
    if tokenizer:
        tiny_tokenizer().save(str(folder / "tokenizer.json"))
        names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder

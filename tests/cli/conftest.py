"""A tiny random checkpoint with a tokenizer, made once, and ways to run the command line on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from scumble.checkpoint import save_checkpoint
from scumble.config import LayerConfig, ModelConfig
from scumble.model import Transformer

SPECIAL = ["<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>"]


def tiny_config(vocab_size: int, **changes: object) -> ModelConfig:
    sizes = {
        "vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
        "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16, "sliding_window": 16,
        "max_position_embeddings": 256, "canvas_length": 16,
        "layers": (LayerConfig("sliding_attention", 8, 2), LayerConfig("full_attention", 16, 1)),
    }  # fmt: skip
    return ModelConfig(**{**sizes, **changes})  # type: ignore[arg-type]


def train_tokenizer(special: list[str]) -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(["def mean(values):\n    return sum(values) / len(values)\n"] * 4, trainer)
    return backend


def make_folder(folder: Path, special: list[str] = SPECIAL, **changes: object) -> Path:
    backend = train_tokenizer(special)
    torch.manual_seed(0)
    model = Transformer(tiny_config(backend.get_vocab_size(), **changes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_checkpoint(model, folder, {"max_new_tokens": 24, "max_denoising_steps": 6})
    backend.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<bos>", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with tokenizer and turn markers."""
    return make_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def no_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without turn markers, so without a chat template."""
    return make_folder(tmp_path_factory.mktemp("no_chat"), special=SPECIAL[:3])


def scumble(*arguments: object, stdin: bytes | None = b"", **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run the command in a process of its own, neither stdout nor stderr a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "scumble.cli", *map(str, arguments)],
        input=stdin, capture_output=True, timeout=60, env={**os.environ, "COLUMNS": "100"}, **options,
    )  # type: ignore[call-overload]  # fmt: skip

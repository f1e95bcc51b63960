"""Tiny tokenizers of the kinds that occur, trained on a few lines, with DiffusionGemma's special tokens."""

import json

import pytest
from hypothesis import settings
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from scumble.text import Tokenizer

settings.register_profile("text", deadline=None, max_examples=150)
settings.load_profile("text")

SPECIAL = [
    *("<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>"),
    *("<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>'),
]
CORPUS = [
    "To scumble is to build a picture up in thin broken layers over the whole canvas.",
    "def turn(user): return system if user else model",
    "user system model thought channel turn <turn> |turn| hello world, hello canvas",
    "Malschichten über der Leinwand; 絵を描く; рисунок",
] * 3


def train_byte_level() -> Backend:
    """Byte-level BPE, as the embedded model's."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def train_byte_fallback() -> Backend:
    """SentencePiece's way, as Gemma's: spaces become ▁, characters outside the vocabulary become byte tokens."""
    backend = Backend(models.BPE())
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    )
    spec = json.loads(backend.to_str())
    vocab = spec["model"]["vocab"]
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    spec["model"] |= {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    backend = Backend.from_str(json.dumps(spec))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def _variant(decoder, metaspace: str | None = None) -> Backend:
    backend = train_byte_fallback()
    if metaspace:
        backend.normalizer = normalizers.Sequence([])
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=metaspace, split=False)
    backend.decoder = decoder
    return backend


def _nested_byte_level() -> Backend:
    backend = train_byte_level()
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    return backend


BUILDERS = {
    "byte-level": train_byte_level,
    "byte-fallback": train_byte_fallback,
    "strips a leading space": lambda: _variant(
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
        "first",
    ),
    "strips two leading spaces": lambda: _variant(
        decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 2, 0)])
    ),
    "metaspace": lambda: _variant(decoders.Metaspace(prepend_scheme="always"), "always"),
    "byte-level in a sequence": _nested_byte_level,
}


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, Tokenizer]:
    return {name: Tokenizer(build()) for name, build in BUILDERS.items()}


@pytest.fixture(scope="session", params=["byte-level", "byte-fallback"])
def tokenizer(request, tokenizers) -> Tokenizer:
    """The two kinds that matter: ours and Gemma's."""
    return tokenizers[request.param]

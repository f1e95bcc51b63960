"""The tokenizer in a GGUF file's metadata, as an object of the `tokenizers` library.

`gemma4`: byte pairs over whole texts, with blanks as ▁, and bytes for what no token has. Checked against the vectors
that llama.cpp publishes with this vocabulary.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from scumble.checkpoint.gguf.reader import GGUF
from scumble.errors import TokenizerError, shown

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
NAMES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token", "mask": "mask_token"}


def tokenizer_backend(gguf: GGUF) -> Tokenizer:
    """Raises TokenizerError where the file has none, another kind, or one that contradicts itself."""
    data, file = gguf.metadata, gguf.file
    kind = data.get("tokenizer.ggml.model")
    if kind != "gemma4":
        raise TokenizerError(f"{file}: tokenizer.ggml.model must be 'gemma4', found {shown(kind)}")
    tokens, merges = _texts(gguf, "tokens"), _texts(gguf, "merges")
    kinds = data.get("tokenizer.ggml.token_type", [])
    if not isinstance(kinds, list) or len(kinds) not in (0, len(tokens)):
        raise TokenizerError(f"{file}: tokenizer.ggml.token_type must have {len(tokens)} entries, as tokens has")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise TokenizerError(f"{file}: {len(tokens) - len(vocabulary)} of {len(tokens)} tokens are there twice")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    for pair in pairs:
        if (
            len(pair) != 2
            or pair[0] + pair[1] not in vocabulary
            or not (pair[0] in vocabulary and pair[1] in vocabulary)
        ):
            raise TokenizerError(f"{file}: tokenizer.ggml.merges must join two tokens to a third, found {shown(pair)}")
    unknown = token_names(gguf).get("unk_token")
    model = models.BPE(vocab=vocabulary, merges=pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True)  # type: ignore[arg-type]  # pairs have two members, as checked
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", "▁")  # type: ignore[assignment]
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")  # type: ignore[assignment]
    backend.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = [token for token, kind in zip(tokens, kinds, strict=False) if kind in (CONTROL, USER_DEFINED)]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return backend


def token_names(gguf: GGUF) -> dict[str, str]:
    """{"bos_token": "<bos>", …} for the ids that the metadata names and the vocabulary has."""
    tokens = _texts(gguf, "tokens")
    out = {}
    for theirs, ours in NAMES.items():
        index: Any = gguf.metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if isinstance(index, int) and 0 <= index < len(tokens):
            out[ours] = tokens[index]
    return out


def chat_template(gguf: GGUF) -> str | None:
    template = gguf.metadata.get("tokenizer.chat_template")
    return template if isinstance(template, str) and template else None


def _texts(gguf: GGUF, name: str) -> list[str]:
    value = gguf.metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise TokenizerError(f"{gguf.file}: tokenizer.ggml.{name} must be a list of texts, found {shown(value)}")
    return value

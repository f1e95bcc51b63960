"""The tokenizer in a GGUF file's metadata, as an object of the `tokenizers` library.

`gemma4`: byte pairs over whole texts, with blanks as ▁, and bytes for what no token has. Checked against the vectors
that llama.cpp publishes with this vocabulary.
"""

from __future__ import annotations

import json
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


def has_tokenizer(gguf: GGUF) -> bool:
    return any(key.startswith("tokenizer.ggml.") and not key.endswith("_token_id") for key in gguf.metadata)


def chat_templates(gguf: GGUF) -> dict[str, str]:
    """{"default": jinja2 source, "tool_use": another one for conversations with tools}, as far as there are any."""
    keys = {"default": "tokenizer.chat_template", "tool_use": "tokenizer.chat_template.tool_use"}
    found = {name: gguf.metadata.get(key) for name, key in keys.items()}
    return {name: source for name, source in found.items() if isinstance(source, str) and source}


def tokenizer_files(gguf: GGUF) -> dict[str, str]:
    """The same as the files of a checkpoint folder: name -> content; empty where the file has no tokenizer."""
    if not has_tokenizer(gguf):
        return {}
    files = {"tokenizer.json": tokenizer_backend(gguf).to_str(), "tokenizer_config.json": json.dumps(token_names(gguf))}
    templates = chat_templates(gguf)
    if "tool_use" in templates:
        both = [{"name": name, "template": source} for name, source in templates.items()]
        files["tokenizer_config.json"] = json.dumps({**token_names(gguf), "chat_template": both})
    elif templates:
        files["chat_template.jinja"] = templates["default"]
    return files


def _texts(gguf: GGUF, name: str) -> list[str]:
    value = gguf.metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise TokenizerError(f"{gguf.file}: tokenizer.ggml.{name} must be a list of texts, found {shown(value)}")
    return value

"""What each token id writes, as bytes: for automata that read tokens (structure/)."""

from __future__ import annotations

from typing import Any

from scumble.errors import TokenizerError
from scumble.text.byte_level import unspelled
from scumble.text.detokenize import _BYTE_TOKEN, _decoder_kinds
from scumble.text.tokenizer import Tokenizer


def token_bytes(tokenizer: Tokenizer) -> list[bytes | None]:
    """By id, the bytes that the token adds to a text; None for special tokens and ids without a token.

    Raises TokenizerError where a token's text depends on its neighbours, so that there is no such list.
    """
    spec = tokenizer.decoder_spec
    kinds = _decoder_kinds(spec)
    out: list[bytes | None] = []
    for id in range(tokenizer.vocab_size):
        token = None if id in tokenizer.special_ids else tokenizer.token(id)
        out.append(None if token is None else _bytes(token, spec, kinds))
    return out


def _bytes(token: str, spec: dict[str, Any] | None, kinds: set[str]) -> bytes:
    if "ByteLevel" in kinds:
        return unspelled(token)
    if "ByteFallback" in kinds and _BYTE_TOKEN.fullmatch(token):
        return bytes([int(token[3:5], 16)])
    if kinds and kinds <= {"Sequence", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        return _replaced(token, spec).encode()
    raise TokenizerError(
        f"structured output needs a tokenizer whose tokens are pieces of text; its decoder is {sorted(kinds) or 'none'}"
    )


def _replaced(token: str, spec: dict[str, Any] | None) -> str:
    """What the decoder's replacements make of a token: "▁" becomes a blank."""
    for part in [] if spec is None else spec.get("decoders", [spec]):
        if part["type"] == "Replace" and "String" in part["pattern"]:
            token = token.replace(part["pattern"]["String"], part["content"])
        elif part["type"] == "Metaspace":
            token = token.replace(part.get("replacement", "▁"), " ")
    return token

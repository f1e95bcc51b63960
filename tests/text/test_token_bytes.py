"""What each token writes: together the bytes of a text's tokens are the text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from scumble import LLM
from scumble.errors import TokenizerError
from scumble.text.token_bytes import token_bytes
from scumble.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def embedded() -> Tokenizer:
    tokenizer = LLM.load().tokenizer
    assert tokenizer is not None
    return tokenizer


@given(text=st.text(max_size=40))
def test_byte_level(embedded: Tokenizer, text: str) -> None:
    written = token_bytes(embedded)
    assert b"".join(written[id] or b"?" for id in embedded.encode(text)) == text.encode()


def test_special_tokens_write_nothing(embedded: Tokenizer) -> None:
    written = token_bytes(embedded)
    assert all(written[id] is None for id in embedded.special_ids)


def sentencepiece(decoder: object) -> Tokenizer:
    vocab = {"<unk>": 0, "▁a": 1, "b": 2, "<0xE2>": 3, "<0x82>": 4, "<0xAC>": 5}
    backend = Backend(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # type: ignore[assignment]
    backend.decoder = decoder  # type: ignore[assignment]
    return Tokenizer(backend)


def test_byte_fallback_and_replacement() -> None:
    tokenizer = sentencepiece(decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]))
    assert token_bytes(tokenizer)[1:] == [b" a", b"b", b"\xe2", b"\x82", b"\xac"]


def test_tokens_that_are_no_pieces_of_text_are_refused() -> None:
    with pytest.raises(TokenizerError, match="pieces of text"):
        token_bytes(sentencepiece(decoders.WordPiece()))

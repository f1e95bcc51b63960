"""The tokenizer loses nothing and cannot be talked into special tokens; packed files give the texts back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from corpus.bpe import (
    SPECIAL_TOKENS,
    bytes_per_token,
    load_tokenizer,
    sample_texts,
    save_tokenizer,
    spread,
    train_bpe,
)
from corpus.pack import is_method, pack_jsonl, share_of
from scumble.errors import DataError, TokenizerError
from scumble.train.packed import open_packed

from .wheels import function

TEXTS = [function(f"name_{i}", lines=1 + i % 6) for i in range(200)] + ["if x:\n        return 12345\n" * 3]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    save_tokenizer(train_bpe(iter(TEXTS), 600), path)
    return load_tokenizer(path)


any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
code_like = st.text(st.sampled_from(" \n\t\r\v\f\x85\u2028_.()=\"'#09azÄ\u0301漢🙂\u200d<>|"), max_size=60)
with_specials = st.lists(st.sampled_from([*SPECIAL_TOKENS, "\n    ", "x", " "]), max_size=8).map("".join)


@settings(max_examples=300, deadline=None)
@given(st.one_of(any_text, code_like, with_specials))
def test_encoding_is_lossless_and_never_special(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.decode(ids) == text
    assert all(i >= len(SPECIAL_TOKENS) for i in ids)


def test_special_ids_are_fixed(tokenizer: Tokenizer) -> None:
    assert len(SPECIAL_TOKENS) == 16
    assert [tokenizer.token_to_id(t) for t in SPECIAL_TOKENS] == list(range(16))
    assert SPECIAL_TOKENS[:3] == ("<pad>", "<eos>", "<bos>")
    assert tokenizer.decode([0, 1, 2, tokenizer.encode("x").ids[0]]) == "x"


def test_specials_can_be_asked_for(tokenizer: Tokenizer) -> None:
    tokenizer.encode_special_tokens = False
    try:
        assert tokenizer.encode("<eos>").ids == [1]
    finally:
        tokenizer.encode_special_tokens = True
    assert len(tokenizer.encode("<eos>").ids) > 1


def test_pieces_fit_python(tokenizer: Tokenizer) -> None:
    assert tokenizer.pre_tokenizer is not None
    cut = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("if a.b_c:\n    return self._x + 120")]
    assert cut == ["if", "Ġa", ".b", "_c", ":", "ĊĠĠĠĠ", "return", "Ġself", "._x", "Ġ+", "Ġ1", "2", "0"]
    assert tokenizer.token_to_id("ĊĠĠĠĠ") is not None


def test_training_is_deterministic_and_checked() -> None:
    assert train_bpe(iter(TEXTS), 400).to_str() == train_bpe(iter(TEXTS), 400).to_str()
    with pytest.raises(TokenizerError, match="too small"):
        train_bpe(iter(TEXTS), 100)


def test_a_damaged_or_foreign_tokenizer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(TokenizerError, match="cannot load"):
        load_tokenizer(path)
    path.write_text('{"version": "1.0"')
    with pytest.raises(TokenizerError, match="cannot load"):
        load_tokenizer(path)
    path.write_text(train_bpe(iter(TEXTS), 400).to_str().replace('"<pad>"', '"<gap>"'))
    with pytest.raises(TokenizerError, match="<pad>"):
        load_tokenizer(path)


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts), encoding="utf-8")
    return path


def test_pack_and_read_back(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = [*TEXTS, "", "<eos> in a text\u2028 of two lines\n"]
    total = pack_jsonl(write_jsonl(tmp_path / "a.jsonl", texts), tokenizer, tmp_path / "tok" / "a", seed=5)
    packed = open_packed(tmp_path / "tok" / "a")
    assert len(packed) == len(texts)
    assert len(packed.ids) == total == packed.offsets[-1]
    assert isinstance(packed.ids, np.memmap)
    assert packed.ids.dtype == np.uint16
    decoded = [tokenizer.decode(packed[i].tolist(), skip_special_tokens=False) for i in range(len(packed))]
    assert sorted(decoded) == sorted(texts)
    assert decoded != texts
    assert packed.ids.min() >= len(SPECIAL_TOKENS)
    assert (packed[-1] == packed[len(packed) - 1]).all()
    with pytest.raises(IndexError):
        packed[len(packed)]
    pack_jsonl(tmp_path / "a.jsonl", tokenizer, tmp_path / "again", seed=5)
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "tok" / "a.bin").read_bytes()


def test_incomplete_packs_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(DataError, match="missing"):
        open_packed(tmp_path / "a")
    pack_jsonl(source, tokenizer, tmp_path / "a")
    data = (tmp_path / "a.bin").read_bytes()
    (tmp_path / "a.bin").write_bytes(data[: len(data) // 2 // 2 * 2])
    with pytest.raises(DataError, match="incomplete"):
        open_packed(tmp_path / "a")
    with pytest.raises(DataError, match="cannot read"):
        pack_jsonl(tmp_path / "none.jsonl", tokenizer, tmp_path / "b")
    source.write_text('{"no text": 1}\n')
    with pytest.raises(DataError, match="cannot read"):
        pack_jsonl(source, tokenizer, tmp_path / "b")


def test_an_empty_corpus_packs_to_nothing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert pack_jsonl(write_jsonl(tmp_path / "a.jsonl", []), tokenizer, tmp_path / "a") == 0
    assert len(open_packed(tmp_path / "a")) == 0


def test_samples_are_spread_over_the_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    every = spread(source, source.stat().st_size // 4)
    assert every == 4
    assert list(sample_texts(source, 10**9, every)) == TEXTS[::4]
    assert list(sample_texts(source, 10)) == []
    assert bytes_per_token(tokenizer, TEXTS) > 1.5


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("def area(self):\n    return 1\n", True),
        ("@property\n@cache\nasync def area(\n    cls, r):\n    return 1\n", True),
        ("def area(selfish):\n    return 1\n", False),
        ("def area():\n    def inner(self): ...\n", False),
    ],
)
def test_methods_are_told_from_functions(text, method):
    assert is_method(text) is method


def test_a_share_of_texts_is_chosen_by_the_text_alone():
    shares = [share_of(f"def f{n}(self): ...") for n in range(2000)]
    assert sum(share < 0.3 for share in shares) == pytest.approx(600, abs=80)
    assert share_of("x") == share_of("x")

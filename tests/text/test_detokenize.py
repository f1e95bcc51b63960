import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scumble.text import StreamDetokenizer

from .conftest import BUILDERS

id_lists = st.lists(st.integers(0, 460), max_size=60)
unicode_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
cuts = st.lists(st.integers(1, 5), min_size=1, max_size=20)


def chunks(ids, sizes):
    sizes, at = list(sizes), 0
    while at < len(ids):
        size = sizes[0]
        sizes.append(sizes.pop(0))
        yield ids[at : at + size]
        at += size


def stream(tokenizer, ids, sizes):
    detokenizer = StreamDetokenizer(tokenizer)
    return [*(detokenizer.feed(chunk) for chunk in chunks(ids, sizes)), detokenizer.finish()]


@given(ids=id_lists, sizes=cuts)
def test_increments_make_up_the_whole_whatever_the_ids(tokenizers, ids, sizes):
    """Also for ids that form no valid UTF-8, special ids and ids outside the vocabulary."""
    for name in BUILDERS:
        assert "".join(stream(tokenizers[name], ids, sizes)) == tokenizers[name].decode(ids), name


@pytest.mark.parametrize("name", BUILDERS)
def test_only_the_text_s_own_beginning_is_stripped(tokenizers, name):
    tokenizer = tokenizers[name]
    space = tokenizer.token_id("▁") or tokenizer.token_id("Ġ")
    for count in range(5):
        ids = [*[space] * count, *tokenizer.encode("a"), *[space] * count, *tokenizer.encode("b")]
        assert "".join(stream(tokenizer, ids, [1])) == tokenizer.decode(ids)


@given(text=unicode_text, sizes=cuts)
def test_no_increment_holds_half_a_character(tokenizers, text, sizes):
    text = text.replace("\ufffd", "")
    for name in ("byte-level", "byte-fallback", "byte-level in a sequence"):
        increments = stream(tokenizers[name], tokenizers[name].encode(text), sizes)
        assert not any("\ufffd" in increment for increment in increments), name


def test_an_emoji_appears_with_its_last_token(tokenizers):
    detokenizer = StreamDetokenizer(tokenizers["byte-level"])
    ids = tokenizers["byte-level"].encode("a🎨b")
    assert [detokenizer.feed([id]) for id in ids] == ["a", "", "", "", "🎨", "b"]


def test_byte_fallback_shows_a_run_of_bytes_when_the_run_is_over(tokenizers):
    """Its decoder turns a whole run into U+FFFD if any byte of it is wrong, so nothing in a run is sure before."""
    detokenizer = StreamDetokenizer(tokenizers["byte-fallback"])
    ids = tokenizers["byte-fallback"].encode("a🎨b")
    assert [detokenizer.feed([id]) for id in ids] == ["a", "", "", "", "", "🎨b"]


def test_an_unfinished_character_is_flushed_at_the_end(tokenizer):
    ids = tokenizer.encode("a🎨")[:-1]
    detokenizer = StreamDetokenizer(tokenizer)
    assert detokenizer.feed(ids) == "a"
    assert detokenizer.finish() == tokenizer.decode(ids)[1:] != ""


def test_special_tokens_are_left_out_unless_other_ids_are_named(tokenizer):
    ids = tokenizer.encode("<|channel>thought\nhm<channel|>yes<turn|>", special=True)
    assert StreamDetokenizer(tokenizer).feed(ids) == "thought\nhmyes"
    shown = StreamDetokenizer(tokenizer, hidden={tokenizer.token_id("<turn|>")}).feed(ids)
    assert shown == "<|channel>thought\nhm<channel|>yes"
    assert StreamDetokenizer(tokenizer, hidden=()).feed(ids).endswith("<turn|>")


@pytest.mark.parametrize("text", ["hello canvas ", "🎨", "\x80"], ids=["words", "bytes", "controls"])
def test_cost_grows_with_the_new_tokens_only(tokenizer, text):
    """20,000 single-token steps; a detokenizer that decodes everything again would need minutes."""
    ids = (tokenizer.encode(text) * 20_000)[:20_000]
    detokenizer = StreamDetokenizer(tokenizer)
    start = time.perf_counter()
    pieces = [detokenizer.feed([id]) for id in ids]
    assert "".join(pieces) + detokenizer.finish() == tokenizer.decode(ids)
    assert time.perf_counter() - start < 5

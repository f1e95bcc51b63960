"""A lower bound on a text's tokens, and prompts that are refused by it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers, pre_tokenizers

from scumble.errors import PromptTooLong
from scumble.text import ChatTemplate
from scumble.text import fewest as module
from scumble.text.fewest import FewestTokens, bound_of

from .conftest import BUILDERS, train_byte_fallback, train_byte_level

SAFE = ["byte-level", "byte-fallback", "metaspace", "byte-level in a sequence"]
letters = st.sampled_from(
    ["the ", "canvas", "  ", "\n", "\n\n", "a", "aaaa", "thin broken", "é", "絵", "▁", "<turn|>", "\t"]
)


@given(st.lists(letters | st.text(max_size=5), max_size=30).map("".join))
def test_a_text_never_has_fewer_tokens(tokenizers, text):
    for name in SAFE:
        tokenizer = tokenizers[name]
        assert tokenizer.fewest_tokens(text, 10**9) <= len(tokenizer.encode(text))


def test_it_says_much_about_ordinary_text(tokenizer):
    text = "To scumble is to build a picture up in thin broken layers over the whole canvas. " * 50
    assert tokenizer.fewest_tokens(text, 10**9) > 0.6 * len(tokenizer.encode(text))
    assert tokenizer.fewest_tokens("a" * 5000, 10**9) > 1000


@pytest.mark.parametrize("block", [1, 2, 7, 64])
def test_blocks_make_no_difference(tokenizer, monkeypatch, block):
    text = "the whole canvas, 絵を描く   layers\n\n over it " * 4
    whole = tokenizer.fewest_tokens(text, 10**9)
    monkeypatch.setattr(module, "BLOCK", block)
    assert tokenizer.fewest_tokens(text, 10**9) == whole


def test_small_vocabularies_by_hand():
    bound = FewestTokens([b"a", b"b", b"ab", b"aaa"])
    assert bound.count("", 9) == 0
    assert bound.count("b", 9) == 1
    assert bound.count("bbb", 9) == 3  # no token holds "bb"
    assert bound.count("abab", 9) == 2
    assert bound.count("a" * 9, 9) == 3  # three times "aaa"


def changed(build, **parts) -> Backend:
    spec = json.loads(build().to_str())
    spec["model"] |= parts.pop("model", {})
    return Backend.from_str(json.dumps(spec | parts))


def test_nothing_is_said_where_tokens_may_stand_for_more_than_their_text():
    assert bound_of(train_byte_level()) is not None
    assert bound_of(changed(train_byte_fallback, model={"byte_fallback": False})) is None  # <unk> may swallow a page
    lowercase = train_byte_level()
    lowercase.normalizer = normalizers.NFC()
    assert bound_of(lowercase) is None
    drops = train_byte_fallback()
    drops.pre_tokenizer = pre_tokenizers.Whitespace()
    assert bound_of(drops) is None
    assert {name: bound_of(build()) is not None for name, build in BUILDERS.items()}.keys() >= set(SAFE)


def test_a_prompt_that_is_far_too_long_is_refused_without_being_tokenized(tokenizer, monkeypatch):
    text = "the whole canvas " * 100_000
    monkeypatch.setattr(tokenizer, "_backend", None)  # tokenizing would fail
    with pytest.raises(PromptTooLong, match=r"the prompt has at least \d+ tokens; the model's context holds 1000,"):
        tokenizer.encode(text, context=1000)


def test_the_border_is_exact(tokenizer):
    text = "the whole canvas " * 20
    count = len(tokenizer.encode(text))
    assert len(tokenizer.encode(text, context=count + 1)) == count
    with pytest.raises(PromptTooLong, match=f"has {count} tokens; the model's context holds {count},"):
        tokenizer.encode(text, context=count)


def test_conversations_are_refused_alike(tokenizer):
    template = ChatTemplate.built_in(tokenizer)
    for content in ("the whole canvas " * 1000, "<turn|> the whole canvas " * 1000):
        with pytest.raises(PromptTooLong):
            template.encode([{"role": "user", "content": content}], tokenizer, context_tokens=200)
    count = len(template.encode([{"role": "user", "content": "a<turn|>b"}], tokenizer))
    assert (
        len(template.encode([{"role": "user", "content": "a<turn|>b"}], tokenizer, context_tokens=count + 1)) == count
    )

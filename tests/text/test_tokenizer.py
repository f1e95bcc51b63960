import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from scumble.errors import InvalidRequest, TokenizerError
from scumble.text import Tokenizer

from .conftest import SPECIAL, train_byte_fallback, train_byte_level

unicode_text = st.text(st.characters(exclude_categories=["Cs"]))
hostile_text = st.lists(st.sampled_from([*SPECIAL, "<", "|", ">", "turn", " ", "\n", "é", "👩‍🚀"])).map("".join)


def test_text_is_data_unless_it_is_said_to_be_a_template(tokenizer):
    turn = tokenizer.token_id("<|turn>")
    assert tokenizer.encode("<|turn>user", special=True)[0] == turn
    assert turn not in tokenizer.encode("<|turn>user")
    assert tokenizer.decode(tokenizer.encode("<|turn>user")) == "<|turn>user"


@given(text=hostile_text)
def test_no_text_can_produce_a_special_id(tokenizers, text):
    for name in ("byte-level", "byte-fallback"):
        ids = tokenizers[name].encode(text)
        assert tokenizers[name].special_ids.isdisjoint(ids)
        assert tokenizers[name].decode(ids) == text


@given(text=unicode_text)
def test_any_text_comes_back(tokenizers, text):
    byte_level, byte_fallback = tokenizers["byte-level"], tokenizers["byte-fallback"]
    assert byte_level.decode(byte_level.encode(text)) == text
    assert byte_fallback.decode(byte_fallback.encode(text)) == text.replace("▁", " ")  # SentencePiece's one loss


@pytest.mark.parametrize("text", ["👩‍👩‍👧‍👦 family", "🏳️‍🌈", "e\u0301", "\x00\x7f", "𝕊cumble"])
def test_emoji_joiners_and_marks(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_lone_surrogates_are_refused(tokenizer):
    with pytest.raises(InvalidRequest, match=r"U\+D800 at character 2"):
        tokenizer.encode("ab\ud800")


def test_a_vocabulary_that_takes_whole_words_first_still_cannot_be_tricked():
    """With `ignore_merges` a word that is in the vocabulary becomes its id, special or not."""
    spec = json.loads(train_byte_level().to_str())
    spec["model"]["ignore_merges"] = True
    spec["pre_tokenizer"]["use_regex"] = False
    tokenizer = Tokenizer(Backend.from_str(json.dumps(spec)))
    ids = tokenizer.encode("<turn|>")
    assert tokenizer.special_ids.isdisjoint(ids)
    assert tokenizer.decode(ids) == "<turn|>"


def test_decoding_leaves_special_tokens_out(tokenizer):
    ids = tokenizer.encode("<bos><|channel>hello", special=True)
    assert tokenizer.decode(ids) == "hello"
    assert tokenizer.decode(ids, skip_special=False) == "<bos><|channel>hello"


def test_control_tokens_are_special_whatever_the_file_marks():
    """Some conversions of the release demote them, to be seen by parsers of text; a user's text must not become one."""
    spec = json.loads(train_byte_level().to_str())
    for token in spec["added_tokens"]:
        token["special"] = False
    tokenizer = Tokenizer(Backend.from_str(json.dumps(spec)))
    ids = tokenizer.encode("<turn|><|tool_call><pad>")
    assert tokenizer.special_ids.isdisjoint(ids)
    assert tokenizer.decode(ids) == "<turn|><|tool_call><pad>"
    assert tokenizer.decode(tokenizer.encode("<turn|><|channel>hello<pad>", special=True)) == "hello"


def test_ids_past_the_vocabulary_decode_to_nothing(tokenizer):
    assert tokenizer.decode([*tokenizer.encode("hello"), tokenizer.vocab_size + 5]) == "hello"
    with pytest.raises(InvalidRequest, match="-1"):
        tokenizer.decode([-1])


def write_folder(path, config=None):
    train_byte_fallback().save(str(path / "tokenizer.json"))
    if config is not None:
        (path / "tokenizer_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return path


def test_a_folder(tmp_path):
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path))
    assert tokenizer.bos_id == 2  # found by its usual name
    assert tokenizer.eos_id is None
    assert tokenizer.special_ids == set(range(len(SPECIAL)))
    assert tokenizer.token_id("no such token") is None
    assert tokenizer.token(4) == "<|turn>"
    assert tokenizer.token(10**9) is None


def test_a_folder_with_a_config_that_names_tokens(tmp_path):
    config = {"bos_token": {"content": "<pad>"}, "eos_token": "<eos>", "soc_token": "canvas", "pad_token": None}
    config |= {"added_tokens_decoder": {"0": {"content": "<pad>", "special": True}}}
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, config))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    assert tokenizer.token_names == {"bos_token": "<pad>", "eos_token": "<eos>", "soc_token": "canvas"}


def test_truncation_and_padding_in_the_file_are_not_obeyed(tmp_path):
    backend = train_byte_level()
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.decode(tokenizer.encode("hello world, hello canvas")) == "hello world, hello canvas"
    assert len(tokenizer.encode("hello")) < 50


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "1.0"}'])
def test_a_damaged_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.from_folder(tmp_path)


def test_a_missing_tokenizer(tmp_path):
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json in"):
        Tokenizer.from_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "not readable JSON"),
        ("[]", "JSON object"),
        ({"added_tokens_decoder": {"x": 1}}, "damaged"),
        ({"added_tokens_decoder": {"7": {"content": "<pad>", "special": True}}}, "'<pad>' the id 7, tokenizer.json 0"),
    ],
)
def test_a_damaged_config(tmp_path, config, message):
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_folder(write_folder(tmp_path, config))


@pytest.mark.parametrize(
    "config",
    [
        {"eos_token": "\ud800"},
        {"additional_special_tokens": ["a", {"content": "\udfff"}]},
        {"added_tokens_decoder": {"5": {}}},
        {"added_tokens_decoder": {"5": {"content": "\ud800"}}},
    ],
)
def test_damaged_token_declarations(tmp_path, config):
    train_byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json: (added_tokens_decoder|.*not valid Unicode)"):
        Tokenizer.from_folder(tmp_path)

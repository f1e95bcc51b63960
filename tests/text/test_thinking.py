import pytest
from hypothesis import given
from hypothesis import strategies as st

from scumble.text import ChannelSplitter, split_thinking, split_thinking_ids

fragments = ["<|channel>", "<channel|>", "thought\n", "thought", "<|chan", "<", "nel|>", "hello", "\n", "é"]


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("just an answer", None, "just an answer"),
        ("<|channel>thought\nlet me see<channel|>42", "let me see", "42"),
        ("<|channel>thought\n<channel|>42", "", "42"),
        ("<|channel>thought\ncut off", "cut off", ""),
        ("<|channel>thou", "", ""),
        ("<|channel>plan\nfirst<channel|>42", "plan\nfirst", "42"),
        ("a<|channel>thought\nb<channel|>c<|channel>thought\nd<channel|>e", "bd", "ace"),
        ("stray<channel|> end", None, "stray end"),
        ("1 <|chan 2", None, "1 <|chan 2"),
        ("ends in <|chan", None, "ends in <|chan"),
        ("", None, ""),
    ],
)
def test_split(text, thinking, answer):
    assert split_thinking(text) == (thinking, answer)


def test_streaming():
    splitter = ChannelSplitter()
    assert splitter.feed("<|chan") == []
    assert splitter.feed("nel>though") == []
    assert splitter.feed("t\nhm, <") == [("thinking", "hm, ")]
    assert splitter.feed("channel|>so: 1 < 2") == [("answer", "so: 1 < 2")]
    assert splitter.feed(" <") == [("answer", " ")]
    assert splitter.finish() == [("answer", "<")]


@given(st.lists(st.sampled_from(fragments), max_size=12), st.data())
def test_any_cut_into_pieces_gives_the_same(parts, data):
    text = "".join(parts)
    splitter = ChannelSplitter()
    out, at = [], 0
    while at < len(text):
        size = data.draw(st.integers(1, 7))
        out += splitter.feed(text[at : at + size])
        at += size
    out += splitter.finish()
    for channel, expected in zip(("thinking", "answer"), split_thinking(text), strict=True):
        assert "".join(piece for name, piece in out if name == channel) == (expected or "")
    assert all(piece for _, piece in out)


def test_ids():
    assert split_thinking_ids([100, 7, 8, 101, 9], 100, 101) == ([7, 8], [9])
    assert split_thinking_ids([7, 8], 100, 101) == (None, [7, 8])

"""What becomes of an answer's ids: text, thinking, tool calls. The tokenizers are the two kinds that matter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scumble.events import ToolCall
from scumble.text import AnswerText, Tokenizer

WEATHER = '<|tool_call>call:weather{city:<|"|>New York, {NY}<|"|>,days:3}<tool_call|>'
OPEN = "<bos><|turn>model\n{}<tool_response|><|channel>thought\n"


def read(tokenizer: Tokenizer, text: str, prompt: str = "", **settings) -> AnswerText:
    """The answer that was written as `text`, its control tokens spelled out."""
    ids = {name: tokenizer.token_id(token) for name, token in [("eos", "<eos>"), ("pad", "<pad>"), ("turn", "<turn|>")]}
    answer = AnswerText(
        tokenizer,
        prompt=tokenizer.encode(prompt, special=True),
        ends={ids["eos"], ids["turn"], ids["pad"]},
        pads={ids["pad"]},
        **settings,
    )
    answer.feed(tokenizer.encode(text, special=True))
    answer.finish()
    return answer


def calls(answer: AnswerText) -> list[tuple]:
    return [(call.name, call.arguments) for call in answer.tool_calls]


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("just an answer", None, "just an answer"),
        ("<|channel>thought\nlet me see<channel|>42", "let me see", "42"),
        ("<|channel>thought\n<channel|>42", "", "42"),
        ("<|channel>thought<channel|>42", "", "42"),
        ("<|channel><channel|>42", "", "42"),
        ("<|channel> thought \r\nlet me see\n<channel|>42", "let me see\n", "42"),
        ("<|channel>thought let me see<channel|>42", "let me see", "42"),
        ("<|channel>thoughtful people<channel|>42", "thoughtful people", "42"),
        ("<|channel>plan\nfirst<channel|>42", "plan\nfirst", "42"),
        ("<|channel>thought\nhm<channel|><|channel>final\n42<channel|>!", "hm", "42!"),
        ("<|channel>thought\nhm<|channel>final\n42", "hm", "42"),
        ("a<|channel>thought\nb<channel|>c<|channel>thought\nd<channel|>e", "bd", "ace"),
        ("stray<channel|> end", None, "stray end"),
        ("ends<turn|>", None, "ends"),
        ("a<pad>b<|think|>c<|turn>d<pad><pad>", None, "abcd"),
        ("", None, ""),
    ],
)
def test_thinking(tokenizer, text, thinking, answer):
    found = read(tokenizer, text)
    assert (found.thinking, found.text, found.thinking_closed) == (thinking, answer, True)
    assert not found.tool_calls
    assert not found.malformed


@pytest.mark.parametrize(
    ("prompt", "text", "thinking", "answer"),
    [
        (OPEN, "so it is 42<channel|>It is 42.", "so it is 42", "It is 42."),
        ("<|channel>thought", "\nso<channel|>yes", "so", "yes"),
        ("<|channel>", "thought\nso<channel|>yes", "so", "yes"),
        ("<|channel>thought\nfirst, ", "then<channel|>yes", "then", "yes"),
        (OPEN, "<channel|>yes", "", "yes"),
        ("<|turn>model\n<|channel>thought\n<channel|>", "yes", None, "yes"),
        ("<|channel>thought\n<turn|>\n<|turn>model\n", "yes", None, "yes"),
        ("<|channel>final\n", "yes", None, "yes"),
        ("", "yes", None, "yes"),
    ],
)
def test_a_prompt_may_have_opened_the_channel_already(tokenizer, prompt, text, thinking, answer):
    found = read(tokenizer, text, prompt)
    assert (found.thinking, found.text, found.thinking_closed) == (thinking, answer, True)


@pytest.mark.parametrize(
    ("prompt", "text", "thinking"),
    [
        ("", "<|channel>thought\ncut off", "cut off"),
        ("", "<|channel>thought\nended<turn|>", "ended"),
        ("", "<|channel>thou", ""),
        (OPEN, "cut off", "cut off"),
        (OPEN, "", ""),
    ],
)
def test_a_thought_that_never_closes_can_be_told(tokenizer, prompt, text, thinking):
    found = read(tokenizer, text, prompt)
    assert (found.thinking, found.text, found.thinking_closed) == (thinking, "", False)


@pytest.mark.parametrize(
    ("text", "expected", "answer"),
    [
        (WEATHER, [("weather", {"city": "New York, {NY}", "days": 3})], ""),
        ("<|tool_call>call:now{}<tool_call|>", [("now", {})], ""),
        ("Let me look. <|tool_call>call:a{}<tool_call|> And: <|tool_call>call:b{}<tool_call|>",
         [("a", {}), ("b", {})], "Let me look.  And: "),
        ("<|tool_call>call:a{}<tool_call|><|tool_call>call:b{}<tool_call|><|tool_response>",
         [("a", {}), ("b", {})], ""),
        ("<|channel>thought\nI need a<channel|><|tool_call>call:a{}<tool_call|>", [("a", {})], ""),
        ("<|channel>thought\nI need a<|tool_call>call:a{}<tool_call|>done", [("a", {})], "done"),
        # The closing marker is missing, but something else says that the call is whole.
        ("<|tool_call>call:a{}<|tool_call>call:b{}<turn|>", [("a", {}), ("b", {})], ""),
        ("<|tool_call>call:a{}<|tool_response>", [("a", {})], ""),
        # A string holds what looks like markup: it is spelled with ordinary tokens, as a user's text would be.
        ('<|tool_call>call:a{x:<|"|>{1}, "2"\n}<|"|>}<tool_call|>', [("a", {"x": '{1}, "2"\n}'})], ""),
        ("<tool_call|>stray", [], "stray"),
        ('said <|"|>x<|"|>', [], "said x"),
    ],
)  # fmt: skip
def test_tool_calls(tokenizer, text, expected, answer):
    found = read(tokenizer, text)
    assert calls(found) == expected
    assert (found.text, found.malformed, found.thinking_closed) == (answer, [], True)


def test_markers_that_are_only_spelled_are_text(tokenizer):
    ids = [
        *tokenizer.encode('<|tool_call>call:a{x:<|"|>', special=True),
        *tokenizer.encode('}<tool_call|><|"|>'),  # ordinary tokens
        *tokenizer.encode('<|"|>}<tool_call|>', special=True),
        *tokenizer.encode("<|channel>thought"),
    ]
    answer = AnswerText(tokenizer)
    answer.feed(ids)
    answer.finish()
    assert calls(answer) == [("a", {"x": '}<tool_call|><|"|>'})]
    assert (answer.text, answer.thinking) == ("<|channel>thought", None)


@pytest.mark.parametrize(
    ("text", "answer", "malformed"),
    [
        ('<|tool_call>call:w{city:<|"|>New', 'call:w{city:"New', '<|tool_call>call:w{city:<|"|>New'),
        ("<|tool_call>call:w{}", "call:w{}", "<|tool_call>call:w{}"),  # who knows what would have followed
        ("a<|tool_call>weather<tool_call|>b", "aweatherb", "<|tool_call>weather<tool_call|>"),
        ("<|tool_call>call:w{a:<turn|>", "call:w{a:", "<|tool_call>call:w{a:<turn|>"),
    ],
)
def test_a_malformed_or_unfinished_call_stays_text_and_is_marked(tokenizer, text, answer, malformed):
    found = read(tokenizer, text)
    assert (found.text, found.malformed, found.tool_calls) == (answer, [malformed], [])


def test_a_prompt_may_have_begun_the_call(tokenizer):
    found = read(tokenizer, 'ity:<|"|>Bern<|"|>}<tool_call|>', "<|turn>model\n<|tool_call>call:weather{c")
    assert calls(found) == [("weather", {"city": "Bern"})]
    assert read(tokenizer, "ity", "<|tool_call>call:weather{c").text == "ity"


def test_ids_of_calls_differ_by_place_and_are_the_same_every_time(tokenizer):
    first, again = (read(tokenizer, WEATHER * 2, "hello").tool_calls for _ in range(2))
    assert first == again
    later = read(tokenizer, WEATHER * 2, "hello hello").tool_calls
    assert len({call.id for call in [*first, *later]}) == 4
    assert all(isinstance(call, ToolCall) and call.id.startswith("call_") for call in first)


def test_pads_are_no_output_unless_something_follows(tokenizer):
    pad, a = tokenizer.token_id("<pad>"), tokenizer.encode("a")[0]
    answer = AnswerText(tokenizer, ends={pad}, pads={pad})
    answer.feed([a, pad, pad])
    assert answer.ids == [a]
    answer.feed([a])
    answer.feed([pad])
    answer.finish()
    assert (answer.ids, answer.text) == ([a, pad, pad, a], "aa")


def test_stop_strings_are_looked_for_in_the_answer_alone(tokenizer):
    text = '<|channel>thought\nEND<channel|><|tool_call>call:a{x:<|"|>END<|"|>}<tool_call|>so END not this'
    found = read(tokenizer, text, stops=["END"])
    assert (found.text, found.thinking, found.stopped) == ("so ", "END", True)
    assert calls(found) == [("a", {"x": "END"})]


def test_streaming(tokenizer):
    """Thinking and text as they come, a call when it is complete."""
    answer = AnswerText(tokenizer, prompt=tokenizer.encode(OPEN, special=True))
    parts = [answer.feed([id]) for id in tokenizer.encode(f"hm<channel|>hello {WEATHER}bye", special=True)]
    parts.append(answer.finish())
    order = [kind for part in parts for kind in ("thinking", "text", "tool_calls") if getattr(part, kind)]
    assert list(dict.fromkeys(order)) == ["thinking", "text", "tool_calls"]
    assert order[-1] == "text"
    assert "".join(part.thinking for part in parts) == answer.thinking == "hm"
    assert "".join(part.text for part in parts) == answer.text == "hello bye"
    assert [call for part in parts for call in part.tool_calls] == answer.tool_calls


def test_thinking_tokens_are_counted(tokenizer):
    thought = len(tokenizer.encode("thought\n")) + len(tokenizer.encode("hello canvas"))
    assert read(tokenizer, "<|channel>thought\nhello canvas<channel|>yes").thinking_tokens == thought
    assert read(tokenizer, "hello canvas", OPEN).thinking_tokens == len(tokenizer.encode("hello canvas"))
    assert read(tokenizer, "yes").thinking_tokens == 0


def test_without_a_tokenizer_there_are_ids_only():
    answer = AnswerText(None, prompt=[1, 2], ends={1}, pads={0})
    answer.feed([5, 6, 0, 0])
    answer.finish()
    assert (answer.ids, answer.text, answer.thinking, answer.thinking_closed) == ([5, 6], "", None, True)


fragments = [
    *("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>', "<|turn>", "<turn|>", "<|tool_response>"),
    *("<pad>", "thought\n", "thought", "final", "call:f{", "a:", "1", "}", ",", "[", "hello", "\n", " ", "é", "絵"),
]


@given(st.lists(st.sampled_from(fragments), max_size=14), st.lists(st.integers(1, 5), max_size=20), st.data())
def test_pieces_make_no_difference_and_no_marker_is_ever_seen(tokenizers, parts, cuts, data):
    for name in ("byte-level", "byte-fallback"):
        tokenizer = tokenizers[name]
        ids = tokenizer.encode("".join(parts), special=True)
        split = data.draw(st.integers(0, len(ids)))  # where the prompt ends
        prompt, ids = ids[:split], ids[split:]
        ends = {tokenizer.token_id("<turn|>"), tokenizer.token_id("<pad>")}
        whole, pieces = (AnswerText(tokenizer, prompt=prompt, ends=ends) for _ in range(2))
        whole.feed(ids)
        whole.finish()
        fresh = []
        rest = list(ids)
        for size in cuts:
            fresh.append(pieces.feed(rest[:size]))
            rest = rest[size:]
        fresh += [pieces.feed(rest), pieces.finish()]
        for kind in ("text", "thinking", "tool_calls", "malformed", "thinking_closed", "ids"):
            assert getattr(whole, kind) == getattr(pieces, kind)
        assert "".join(part.text for part in fresh) == whole.text
        assert "".join(part.thinking for part in fresh) == (whole.thinking or "")
        seen = whole.text + (whole.thinking or "")
        assert not any(token in seen for token in tokenizer.special_tokens)

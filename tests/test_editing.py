"""Edits change their region alone; instructions reach the model in the form that it has learnt; predictions."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble import LLM, GenerationConfig
from scumble.editing import message, noisy
from scumble.errors import InvalidRequest
from scumble.text import ChatTemplate
from structure.test_calls import byte_tokenizer
from tiny import tiny_model

CONFIG = GenerationConfig(max_new_tokens=30, max_denoising_steps=2, seed=4)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|turn>{{ m.role }}\n{{ m.content }}<turn|>\n{% endfor %}<|turn>model\n"
)


@pytest.fixture(scope="module")
def llm() -> LLM:
    """Random weights, no infill form, and the built-in chat template, which is no sign that a model can chat."""
    tokenizer = byte_tokenizer()
    made = LLM(tiny_model(vocab_size=tokenizer.vocab_size, pad_token_id=0, canvas_length=32), tokenizer)
    made.__dict__["chat_template"] = ChatTemplate.built_in(tokenizer)
    return made


@pytest.fixture(scope="module")
def instructed() -> LLM:
    """One with a chat template of its own."""
    tokenizer = byte_tokenizer()
    made = LLM(
        tiny_model(vocab_size=tokenizer.vocab_size, pad_token_id=0, canvas_length=32), tokenizer, folder=Path("x")
    )
    made.__dict__["chat_template"] = ChatTemplate(TEMPLATE, token_names=tokenizer.token_names)
    return made


@settings(max_examples=12, deadline=None)
@given(
    st.text(alphabet="abé \n<>", max_size=30), st.text(alphabet="xy\n", max_size=8),
    st.text(alphabet="abé \n<>", max_size=500), st.sampled_from([None, "Shorten it."]), st.sampled_from([0.3, 1.0]),
)  # fmt: skip
def test_an_edit_changes_its_region_alone(
    llm: LLM, instructed: LLM, before: str, old: str, after: str, instruction: str | None, strength: float
) -> None:
    text, region = before + old + after, (len(before), len(before) + len(old))
    for one in (llm, instructed):
        found = one.edit(text, instruction, region=region, strength=strength, config=CONFIG)
        new = found.text[found.region[0] : found.region[1]]
        assert found.text == before + new + after
        assert found.region[0] == len(before)
        assert (found.diff == "") == (found.text == text)
        assert found.passes


def test_a_diff_says_what_changed(llm: LLM) -> None:
    found = llm.edit("keep this, change that, keep this too", region=(11, 22), strength=1.0, config=CONFIG)
    assert found.diff.startswith("--- before")


def test_no_strength_no_change(llm: LLM) -> None:
    assert llm.edit("as it is", strength=0).text == "as it is"
    assert llm.edit("as it is", strength=0).diff == ""


def test_the_draft_keeps_what_the_strength_leaves(llm: LLM) -> None:
    """Behind the region stand the fixed text, the end, and pads."""
    assert llm.tokenizer is not None
    text = "abc" * 200
    ids, behind = llm.tokenizer.encode(text), llm.tokenizer.encode("xyz")
    for strength in (0.25, 1.0):
        draft = noisy(llm, text, strength, 3, "xyz")
        kept = sum(a == b for a, b in zip(draft, ids, strict=False)) / len(ids)
        assert kept == pytest.approx(1 - strength, abs=0.08)  # 600 places: three standard deviations are 0.053
        assert draft[len(ids) : len(ids) + 4] == [*behind, 1]


def test_the_message_of_an_instruction() -> None:
    assert message("Be brief.", ("", "A text.", "")).startswith("Be brief.\n\nDo this to the text below.")
    said = message("Be brief.", ("one <edit> ", "two", " three"))
    assert "between <edit_> and </edit_>" in said
    assert said.endswith("one <edit> <edit_>two</edit_> three")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"region": (3, 2)}, "region"), ({"region": (0, 99)}, "region"), ({"region": (-1, 2)}, "region"),
        ({"region": "ab"}, "region"), ({"region": (1,)}, "region"), ({"region": (0.0, 1)}, "region"),
        ({"strength": 2}, "strength"), ({"strength": float("nan")}, "strength"), ({"instruction": " "}, "instruction"),
        ({"instruction": 3}, "instruction"), ({"config": GenerationConfig(regex="a")}, "whole answers"),
    ],
)  # fmt: skip
def test_refused(llm: LLM, options: dict, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        llm.edit("text", **options)


def test_a_prediction_is_where_an_answers_canvas_starts(llm: LLM) -> None:
    assert llm.tokenizer is not None
    messages = [{"role": "user", "content": "hi"}]
    request = llm.chat_request(messages, GenerationConfig(max_new_tokens=20), prediction="the last one")
    ids = tuple(llm.tokenizer.encode("the last one"))
    assert request.draft[: len(ids) + 1] == (*ids, 1)
    assert request.prompt.tolist() == llm.chat_request(messages).prompt.tolist()
    assert llm.text_request("hi", GenerationConfig(max_new_tokens=20), prediction="the last one").draft == request.draft
    with pytest.raises(InvalidRequest, match="prediction must be a text"):
        llm.chat(messages, prediction=["a"])
    with pytest.raises(InvalidRequest, match="give one of them"):
        llm.generate("hi", prediction="a", draft=[5])
    with pytest.raises(InvalidRequest, match="no canvas"):
        llm.chat(messages, GenerationConfig(decoder="autoregressive"), prediction="a")
    with pytest.raises(InvalidRequest, match="room for 3"):
        llm.chat(messages, GenerationConfig(max_new_tokens=3), prediction="a long one")

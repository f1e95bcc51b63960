"""Thinking, tool calls, pads and drafts through the public face. Answers are pinned, so that the model writes them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from scumble import LLM, Committed, Finished, GenerationConfig, InvalidRequest, PromptTooLong
from scumble.text import ChatTemplate, Tokenizer
from tiny import EOS, tiny_model

spec = importlib.util.spec_from_file_location("text_tokenizers", Path(__file__).parent / "text" / "conftest.py")
assert spec is not None
assert spec.loader is not None
text_tokenizers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(text_tokenizers)

CALL = '<|tool_call>call:weather{city:<|"|>New York, {NY}<|"|>,days:3}<tool_call|>'


@pytest.fixture(scope="module")
def llm() -> LLM:
    backend = text_tokenizers.train_byte_level()
    made = LLM(tiny_model(vocab_size=backend.get_vocab_size(), canvas_length=16), Tokenizer(backend))
    assert made.tokenizer is not None
    made.__dict__["chat_template"] = ChatTemplate.built_in(made.tokenizer)
    return made


def ids(llm: LLM, text: str) -> list[int]:
    assert llm.tokenizer is not None
    return llm.tokenizer.encode(text, special=True)


def said(llm: LLM, prompt: list[int], text: str, decoder: str = "diffusion", **settings):
    """The events of an answer that was written as `text`."""
    written = ids(llm, text)
    config = GenerationConfig(max_new_tokens=len(written), max_denoising_steps=2, **settings)
    return list(llm.stream_ids([prompt], config, pinned=[dict(enumerate(written))]))


def test_a_thought_that_the_prompt_opened_and_calls_behind_it(llm):
    messages = [
        {"role": "user", "content": "hello"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "42"},
    ]
    prompt = llm.encode_chat(messages, enable_thinking=True)
    events = said(llm, prompt, f"so it is 42<channel|>It is 42.{CALL}<eos>")
    end = events[-1]
    assert isinstance(end, Finished)
    answer = end.generation
    assert (answer.thinking, answer.text, answer.thinking_closed) == ("so it is 42", "It is 42.", True)
    assert [(call.name, call.arguments) for call in answer.tool_calls] == [
        ("weather", {"city": "New York, {NY}", "days": 3})
    ]
    assert (answer.finish_reason, answer.malformed_tool_calls) == ("stop", ())
    assert answer.thinking_tokens == len(ids(llm, "so it is 42"))
    committed = [event for event in events if isinstance(event, Committed)]
    assert "".join(event.thinking for event in committed) == answer.thinking
    assert "".join(event.text for event in committed) == answer.text
    assert [call for event in committed for call in event.tool_calls] == list(answer.tool_calls)


def test_what_the_limit_cuts_off_can_be_told(llm):
    cut = said(llm, [20, 21], "<|channel>thought\nso it")[-1].generation
    assert (cut.thinking, cut.text, cut.thinking_closed, cut.finish_reason) == ("so it", "", False, "length")
    cut = said(llm, [20, 21], '<|tool_call>call:w{a:<|"|>x')[-1].generation
    assert (cut.text, cut.tool_calls) == ('call:w{a:"x', ())
    assert cut.malformed_tool_calls == ('<|tool_call>call:w{a:<|"|>x',)


def test_pads_that_fill_a_canvas_end_the_answer_and_are_not_counted(llm):
    text = "hello"
    answer = said(llm, [20, 21], text + "<pad>" * 20)[-1].generation
    assert (answer.text, list(answer.token_ids), answer.finish_reason) == ("hello", ids(llm, text), "stop")
    answer = said(llm, [20, 21], "a<pad>b<eos><pad><pad>")[-1].generation
    assert (answer.text, list(answer.token_ids)) == ("ab", ids(llm, "a<pad>b<eos>"))
    assert answer.token_ids[-1] == EOS


def test_with_ignore_eos_every_id_counts_and_none_of_them_is_text(llm):
    text = "a<eos><pad>b<turn|><pad><pad>"
    answer = said(llm, [20, 21], text + "c", ignore_eos=True)[-1].generation
    assert (answer.text, list(answer.token_ids)) == ("abc", ids(llm, text + "c"))


def test_a_draft_longer_than_the_answer_is_refused(llm):
    config = GenerationConfig(max_new_tokens=4, max_denoising_steps=2)
    with pytest.raises(InvalidRequest, match="the draft has 6 ids, but max_new_tokens leaves room for 4; raise"):
        llm.generate_ids([20, 21], config, draft=[7, 8, 9, 10, 11, 12, EOS, 0, 0])
    llm.generate_ids([20, 21], config, draft=[7, 8, 9, 10, EOS, *[0] * 20])  # what is behind holds nothing


def test_text_that_is_no_unicode_is_refused_wherever_it_comes_in(llm):
    bad, config = "a\udcff", GenerationConfig(max_new_tokens=4)
    for ask in (
        lambda: GenerationConfig(stop=bad),
        lambda: GenerationConfig(stop=["b", bad]),
        lambda: llm.generate(bad, config),
        lambda: llm.generate(["b", bad], config),
        lambda: llm.chat([{"role": "user", "content": bad}], config),
        lambda: llm.chat([{"role": "user", "content": "b"}], config, tools=[{"name": bad}]),
        lambda: llm.chat([{"role": "user", "content": "b"}], config, option=bad),
    ):
        with pytest.raises(InvalidRequest, match="Unicode"):
            ask()


def test_prompts_far_too_long_are_refused_at_once(llm):
    text = "the whole canvas " * 500_000
    for ask in (lambda: llm.generate(text), lambda: llm.chat([{"role": "user", "content": text}])):
        with pytest.raises(PromptTooLong, match=r"the prompt has at least \d+ tokens; the model's context holds 4096,"):
            ask()

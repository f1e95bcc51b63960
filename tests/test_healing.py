"""Prompts that end in white space: what was typed stays as it is, and the answer goes on as if it were not there."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from one_thread import one_thread_for_the_module  # noqa: F401
from scumble import LLM, Committed, Draft, GenerationConfig, InvalidRequest
from scumble.llm import embedded_path
from scumble.text import Tokenizer
from scumble.text.healing import beginning_with, take_back
from tiny import tiny_model

TOKENIZER = Tokenizer.from_folder(embedded_path())
FREE = {"max_denoising_steps": 3, "max_new_tokens": 20, "best_of": 1}
DECODERS = pytest.mark.parametrize("decoder", ["diffusion", "autoregressive"])


@pytest.fixture(scope="module")
def llm() -> LLM:
    """A model of nonsense with a real tokenizer: what holds for its answers holds for all."""
    return LLM(tiny_model(vocab_size=TOKENIZER.vocab_size), TOKENIZER)


def taken_back(text: str) -> tuple[str, str]:
    ids, typed = take_back(TOKENIZER, text, TOKENIZER.encode(f"x{text}"))
    return TOKENIZER.decode(ids)[1:], typed


@pytest.mark.parametrize(
    ("text", "kept", "typed"),
    [
        ("def f():\n", "def f():", "\n"),
        ("def f():\n\n", "def f():\n", "\n"),
        ("return ", "return", " "),
        ("def f():\n    ", "def f():\n    ", ""),  # indentation says how deep the next line is to be
        ("def f():", "def f():", ""),
        ("retur", "retur", ""),  # words may go on, but need not
        ("x =\t", "x =\t", ""),  # no token goes on with that
    ],
)
def test_white_space_is_taken_back_where_tokens_begin_with_it(text, kept, typed):
    assert taken_back(text) == (kept, typed)


@given(st.text(st.sampled_from("ab:( \n\t"), max_size=12))
def test_nothing_is_lost(text):
    kept, typed = taken_back(text)
    assert kept + typed == text


def test_at_least_one_id_stays():
    ids = TOKENIZER.encode("\n")
    assert take_back(TOKENIZER, "\n", ids) == (ids, "")


@DECODERS
@pytest.mark.parametrize("seed", range(4))
def test_the_first_token_begins_with_what_was_typed_and_the_text_leaves_it_out(llm, decoder, seed):
    config = GenerationConfig(decoder=decoder, seed=seed, ignore_eos=True, **FREE)
    answer = llm.generate("def f():\n", config)
    assert answer.token_ids[0] in beginning_with(TOKENIZER, "\n")
    assert "\n" + answer.text == TOKENIZER.decode(answer.token_ids)
    assert answer.prompt_tokens == len(llm.encode_prompt("def f():"))


@DECODERS
def test_other_prompts_are_answered_as_their_ids_are(llm, decoder):
    config = GenerationConfig(decoder=decoder, **FREE)
    for text in ("def f():", "def f():\n    "):
        assert llm.generate(text, config).token_ids == llm.generate_ids(llm.encode_prompt(text), config).token_ids


@DECODERS
def test_a_row_of_a_batch_is_what_it_is_alone(llm, decoder):
    config = GenerationConfig(decoder=decoder, temperature=0.7, seed=5, **FREE)
    texts = ["def f():\n", "x = ", "def g():"]
    together = llm.generate(texts, config)
    assert [one.token_ids for one in together] == [llm.generate(text, config).token_ids for text in texts]


def test_every_candidate_begins_so(llm):
    config = GenerationConfig(ignore_eos=True, **{**FREE, "best_of": 3})
    drafts = [event for event in llm.stream("def f():\n", config) if isinstance(event, Draft) and event.canvas == 0]
    assert {event.candidate for event in drafts} == {0, 1, 2}
    allowed = set(beginning_with(TOKENIZER, "\n"))
    assert all(event.token_ids[0] in allowed and event.typed == "\n" for event in drafts)
    assert all("\n" + event.text == TOKENIZER.decode(event.token_ids) for event in drafts)


def test_the_parts_of_a_stream_make_up_the_text(llm):
    events = list(llm.stream("def f():\n", GenerationConfig(ignore_eos=True, **FREE)))
    text = "".join(event.text for event in events if isinstance(event, Committed))
    assert text == events[-1].generation.text


def test_only_the_first_canvas_leaves_something_out(llm):
    config = GenerationConfig(ignore_eos=True, **{**FREE, "canvas_length": 4})
    typed = {event.canvas: event.typed for event in llm.stream("x = ", config) if isinstance(event, Draft)}
    assert typed == {0: " ", 1: "", 2: "", 3: "", 4: ""}


def test_a_stop_string_in_what_was_typed_does_not_end_the_answer(llm):
    config = GenerationConfig(ignore_eos=True, stop=("\n",), **FREE)
    answer = llm.generate("def f():\n", config)
    assert len(answer.token_ids) > 1 or answer.text


def test_the_middle_of_a_text_begins_so_too(llm):
    request = llm.fill_request("x = ", "\n")
    assert request.typed == " "
    assert llm.fill_request("x =", "\n").prompt.tolist() == request.prompt.tolist()
    assert llm.fill_request("def f():\n    ", "\n").typed == ""
    assert llm.fill_request("x = ", "\n", damaged="1").typed == ""  # a damaged text stands where it stands


def test_positions_count_from_the_end_of_the_prompt_where_some_are_given(llm):
    token = TOKENIZER.encode("pass")[0]
    answer = llm.generate("def f():\n", GenerationConfig(ignore_eos=True, **FREE), pinned={0: token})
    assert answer.token_ids[0] == token
    assert answer.prompt_tokens == len(llm.encode_prompt("def f():\n"))


def test_ids_of_which_one_must_begin_the_answer_are_checked(llm):
    with pytest.raises(InvalidRequest, match="first is empty"):
        llm.stream_ids([[1]], typed=["no token begins like this"])
    with pytest.raises(InvalidRequest, match="one entry a row"):
        llm.stream_ids([[1]], typed=["a", "b"])


def test_a_canvas_of_one_token_is_nothing_special(llm):
    config = GenerationConfig(ignore_eos=True, **{**FREE, "canvas_length": 1})
    answer = llm.generate("def f():\n", config)
    assert answer.token_ids[0] in beginning_with(TOKENIZER, "\n")


def test_a_pass_at_zero_temperature_takes_the_best_of_the_allowed(llm):
    config = GenerationConfig(ignore_eos=True, temperature=0, decoder="autoregressive", **FREE)
    ids = llm.encode_prompt("def f():")
    hidden = llm.model.encode(torch.tensor(ids), llm.model.new_cache())
    logits = llm.model.logits(hidden)[-1]
    allowed = torch.tensor(beginning_with(TOKENIZER, "\n"))
    assert llm.generate("def f():\n", config).token_ids[0] == int(allowed[logits[allowed].argmax()])


def test_a_trace_changes_nothing(llm):
    config, seen = GenerationConfig(ignore_eos=True, **FREE), []
    answer = llm.generate("def f():\n", config, trace=seen.append)
    assert answer.token_ids == llm.generate("def f():\n", config).token_ids
    assert len(seen) == answer.evaluations

"""Filling in and repair: prompts in the form of the training rows, and what models without markers say."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from one_thread import one_thread_for_the_module  # noqa: F401
from scumble import LLM, Finished, GenerationConfig, InvalidRequest, TokenizerError
from scumble.train.infill import infill_rows, infill_tokens
from tiny import save_folder, tiny_model, tiny_tokenizer

PREFIX, SUFFIX, MIDDLE, REPAIR = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|repair|>"
FREE = {"ignore_eos": True, "max_denoising_steps": 2, "max_new_tokens": 12}
TEXTS = st.text(max_size=12)


def load(folder, *markers: str) -> LLM:
    backend = tiny_tokenizer()
    backend.add_special_tokens(list(markers))
    save_folder(folder, tiny_model(vocab_size=backend.get_vocab_size()), tokenizer=True)
    backend.save(str(folder / "tokenizer.json"))
    return LLM.load(folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> LLM:
    return load(tmp_path_factory.mktemp("marked") / "m", PREFIX, SUFFIX, MIDDLE, REPAIR)


def pieces(llm: LLM, ids) -> list[str]:
    """Special tokens by name, and the texts between them."""
    text = llm.tokenizer.decode(list(ids), skip_special=False)
    return [piece for piece in re.split(r"(<\|\w+\|>|<bos>|<eos>)", text) if piece]


@given(TEXTS, TEXTS, TEXTS.filter(bool))
def test_a_prompt_holds_its_texts_between_the_markers(llm, before, after, damaged):
    def encoded(text: str) -> list[int]:
        return llm.tokenizer.encode(text)

    prefix, suffix, middle, repair = (llm.tokenizer.special_tokens[name] for name in (PREFIX, SUFFIX, MIDDLE, REPAIR))
    start = [llm.tokenizer.bos_id, prefix, *encoded(before), suffix, *encoded(after)]
    hole = llm.fill_request(before, after)
    kept = encoded(before)[:-1] if hole.typed else encoded(before)  # white space that is left to the answer
    assert hole.prompt.tolist() == [llm.tokenizer.bos_id, prefix, *kept, suffix, *encoded(after), middle]
    wanted = [*start, repair, *encoded(damaged), middle]
    assert llm.fill_request(before, after, damaged=damaged).prompt.tolist() == wanted


def test_markers_in_a_text_are_text(llm):
    ids = llm.fill_request(f"{PREFIX}a", f"{REPAIR}{MIDDLE}", damaged=SUFFIX).prompt.tolist()
    for marker in (PREFIX, SUFFIX, MIDDLE, REPAIR):
        assert ids.count(llm.tokenizer.special_tokens[marker]) == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_prompt_of_repair_is_that_of_a_training_row(llm, seed):
    text = "def f(x):\n    y = x\n    return y\n"
    tokens = infill_tokens(llm.tokenizer)
    body = np.array(llm.tokenizer.encode(text))
    bos, eos = llm.tokenizer.bos_id, llm.tokenizer.eos_id
    rows, prompt, _ = infill_rows([body], tokens, bos, eos, 256, "line", True, np.random.default_rng(seed))
    _, _, before, _, *rest = parts = pieces(llm, rows[0])
    after = rest.pop(0) if rest[0] != REPAIR else ""
    damaged = rest[1]
    assert parts[:2] == ["<bos>", PREFIX]
    assert pieces(llm, llm.fill_request(before, after, damaged=damaged).prompt.tolist()) == pieces(
        llm, rows[0][:prompt]
    )


def test_repair_edits_the_damaged_text_in_place(llm):
    """The canvas starts from the text, an end and pads; the prompt shows it too."""
    config = GenerationConfig(seed=3, **FREE)
    request = llm.fill_request("def f(x):\n    ", "\n", config, "retrun x")
    draft = request.draft
    text = llm.tokenizer.encode("retrun x")
    shape = llm.model.config
    assert draft[: len(text) + 1] == (*text, shape.eos_token_ids[0])
    assert len(draft) >= len(text) + 1 + shape.canvas_length
    seen = []
    wanted = llm.generate_ids(request.prompt, request.config, draft=draft, trace=seen.append)
    assert seen[0].canvas_in[: len(text)].tolist() == text[: shape.canvas_length]
    assert llm.repair("def f(x):\n    ", "retrun x", "\n", config).token_ids == wanted.token_ids
    events = list(llm.stream_repair("def f(x):\n    ", "retrun x", "\n", config))
    assert isinstance(events[-1], Finished)
    assert events[-1].generation.token_ids == wanted.token_ids


def test_without_a_canvas_repair_answers_the_prompt(llm):
    config = GenerationConfig(decoder="autoregressive", temperature=0, max_new_tokens=5)
    request = llm.fill_request("def f(x):\n    ", "\n", config, "retrun x")
    assert request.draft == ()
    wanted = llm.generate_ids(request.prompt, config)
    assert llm.repair("def f(x):\n    ", "retrun x", "\n", config).token_ids == wanted.token_ids


@pytest.mark.parametrize("damaged", ["", None, 5, b"x", "\ud800"])
def test_damaged_texts_that_are_none(llm, damaged):
    with pytest.raises(InvalidRequest) as caught:
        llm.repair("a", damaged, "b", GenerationConfig(**FREE))
    assert "\n" not in str(caught.value)


def test_a_model_without_markers_says_so(llm, tmp_path):
    only_infill = load(tmp_path / "infill", PREFIX, SUFFIX, MIDDLE)
    assert only_infill.fill_request("a", "b").prompt.tolist()
    with pytest.raises(TokenizerError, match=r"no repair marker \(<\|repair\|>\)"):
        only_infill.repair("a", "x", "b")
    neither = load(tmp_path / "neither", REPAIR)
    for call in (lambda: neither.infill("a", "b"), lambda: neither.repair("a", "x", "b")):
        with pytest.raises(TokenizerError, match="no fill-in-the-middle markers"):
            call()
    with pytest.raises(TokenizerError, match="has no tokenizer; text needs one"):
        LLM(tiny_model()).repair("a", "x", "b")


def test_short_answers_get_short_canvases_unless_a_length_was_chosen(llm):
    asked = GenerationConfig(canvas_length=3)
    own = LLM(llm.model, llm.tokenizer, defaults={"canvas_length": 5})
    assert llm.fill_request("a", "b").config.canvas_length == "auto"
    assert llm.fill_request("a", "b", asked).config.canvas_length == 3
    assert own.fill_request("a", "b").config.canvas_length == 5

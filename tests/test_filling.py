"""Holes: what stands outside them is the caller's, byte for byte; what stands inside is of its type."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble import LLM, GenerationConfig
from scumble.errors import InvalidRequest
from scumble.filling import parse_template
from scumble.structure import Choices, JsonSchema, Language, Regex, Template, Vocabulary
from scumble.structure.automaton import Budget
from scumble.structure.classes import classify
from scumble.text.token_bytes import token_bytes
from structure.test_answers import byte_tokenizer
from structure.walks import walk_tokens
from tiny import tiny_model

CONFIG = GenerationConfig(max_new_tokens=60, max_denoising_steps=2, seed=4, best_of=1)


@pytest.fixture(scope="module")
def llm() -> LLM:
    """Random weights, and no infill form."""
    tokenizer = byte_tokenizer()
    return LLM(tiny_model(vocab_size=tokenizer.vocab_size, pad_token_id=0, canvas_length=32), tokenizer)


def test_holes_have_names_and_types(llm: LLM) -> None:
    template = 'a {{hole:word regex=[a-z]{2,3}}} b {{hole max=4}} c {{hole:pick choices="yes|no way"}} d'
    found = llm.fill(template, CONFIG)
    assert re.fullmatch(r"[a-z]{2,3}", found.holes["word"])
    assert len(found.holes["1"]) <= 4
    assert found.holes["pick"] in ("yes", "no way")
    assert found.text == f"a {found.holes['word']} b {found.holes['1']} c {found.holes['pick']} d"


def test_holes_in_pieces_with_their_log_probabilities(llm: LLM) -> None:
    template = 'é{{hole:a regex="[é𝄞x]{2,9}"}} and {{hole:b max=4}}!'
    found = llm.fill(template, CONFIG.merged({"logprobs": 0}))
    assert found.logprobs is not None
    assert {name: "".join(text for text, _ in pieces) for name, pieces in found.logprobs.items()} == found.holes
    assert all(logprob <= 0 for pieces in found.logprobs.values() for _, logprob in pieces)
    assert llm.fill(template, CONFIG).logprobs is None


@settings(max_examples=15)
@given(st.lists(st.text(alphabet="xyé \n{}", max_size=5), min_size=2, max_size=4))
def test_text_outside_holes_stays(llm: LLM, texts: list[str]) -> None:
    template = "{{hole regex=[a-c]{1,2}}} ".join(f"<{text}>" for text in texts)
    found = llm.fill(template, CONFIG)
    rest = found.text
    for number, text in enumerate(texts):
        assert rest.startswith(f"<{text}>")
        rest = rest[len(text) + 2 :]
        if number < len(texts) - 1:
            hole = found.holes[str(number)]
            assert rest.startswith(hole + " ")
            rest = rest[len(hole) + 1 :]
    assert rest == ""


def check_template(seed: int) -> None:
    """A random template, and random ids of its language, decoded: what stands outside holes is the template's own, and
    the holes that `parse` finds there put the text together again."""
    rng = random.Random(seed)
    texts = ["".join(rng.choices(PIECES, k=rng.randint(0, 4))) for _ in range(rng.randint(2, 5))]
    types: list[tuple[Language | None, int | None]] = [
        (None, rng.randint(1, 6)), (Regex("[a-z]{0,3}"), None), (Choices.of(["yes", "no", ""]), None),
        (Regex("(ab)*"), 4), (JsonSchema.of({"enum": ["x", {"{{hole}}": 1}]}), None),
    ]  # fmt: skip
    parts = [(text, *rng.choice(types)) for text in texts[:-1]]
    language = Template(tuple(parts), texts[-1])
    tokens = classify(language.automaton(Budget()), VOCABULARY, (1,), Budget())
    written = TOKENIZER.decode(walk_tokens(tokens, rng))
    holes = language.parse(written)
    assert "".join(text + hole for (text, *_), hole in zip(parts, holes, strict=True)) + texts[-1] == written
    for hole, (_, own, most) in zip(holes, parts, strict=True):
        assert most is None or len(hole) <= most
        assert own is None or own.automaton(Budget()).accepts(hole.encode())


TOKENIZER = byte_tokenizer()
VOCABULARY = Vocabulary(token_bytes(TOKENIZER))
PIECES = ["a", "b", "ab", " ", "\n", "é", "𝄞", "\x00", "}", "{{", "yes", '"', "\\", "\ufeff", "\r\n"]


@pytest.mark.parametrize("seed", range(60))
def test_random_templates_at_the_level_of_ids(seed: int) -> None:
    check_template(seed)


@pytest.mark.slow
@pytest.mark.parametrize("thousand", range(10))
def test_ten_thousand_random_templates(thousand: int) -> None:
    for seed in range(1000 * thousand, 1000 * thousand + 1000):
        check_template(seed)


def test_max_new_tokens_is_of_the_holes(llm: LLM) -> None:
    """Fixed text counts nothing, and what is far behind the last hole is not written at all."""
    text = "a sentence of some length. " * 60
    found = llm.fill(f"b{{{{hole regex=[ab]{{4}}}}}} {text}", GenerationConfig(max_new_tokens=4, max_denoising_steps=2))
    assert found.text == f"b{found.holes['0']} {text}"
    assert re.fullmatch("[ab]{4}", found.holes["0"])


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("no hole", "no hole"),
        ("{{hole:a}} {{hole:a}}", "two holes"),
        ("{{hole max=0}}", "whole number"),
        ("{{hole most=3}}", "options are"),
        ("{{hole regex=a choices=b}}", "exclude"),
        ("{{hole regex=(a}}", "without its"),
        ("{{hole:}}", "cannot be read"),
        ("a\ud800{{hole}}", "surrogate"),
    ],
)
def test_refused_templates(template: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        parse_template(template)

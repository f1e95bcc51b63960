"""Reads and scores against plain forwards."""

import math
import random

import pytest
import torch

from scumble import LLM
from scumble.errors import InvalidRequest
from structure.test_answers import byte_tokenizer
from tiny import tiny_model


@pytest.fixture(scope="module")
def llm() -> LLM:
    tokenizer = byte_tokenizer()
    return LLM(tiny_model(vocab_size=tokenizer.vocab_size, pad_token_id=0, canvas_length=48), tokenizer)


LABELS = {"v": ["yes", "no", "true"]}


def test_probabilities_sum_to_one_and_repeat(llm: LLM) -> None:
    found = llm.read("A line.\nGood? {{v}}.", LABELS, draws=3)
    assert math.fsum(found.probabilities["v"].values()) == pytest.approx(1)
    assert list(found.probabilities["v"]) == LABELS["v"]
    assert all(error >= 0 for error in found.stderr["v"].values())
    assert llm.read("A line.\nGood? {{v}}.", LABELS, draws=3) == found


@pytest.fixture(scope="module")
def embedded() -> LLM:
    """With the operations of this machine: native ones share forwards between texts, plain ones do not."""
    return LLM.load()


@pytest.mark.parametrize("which", ["llm", "embedded"])
def test_the_same_bits_alone_and_in_any_batch(which: str, request: pytest.FixtureRequest) -> None:
    llm: LLM = request.getfixturevalue(which)
    rng = random.Random(2)
    lines = ["A line.\n", "Another.\n", "x = 1\n" * 20, "x = 1\n" * 21, "def f(a, b):\n    return a\n"]
    ends = ["Good? {{v}}.", "Bad? {{v}}", "Is it {{v}} or not?", "return {{v}}"]
    templates = [rng.choice(lines) + rng.choice(ends) for _ in range(12)]
    alone = [llm.read(template, LABELS, draws=2, seed=5) for template in templates]
    assert llm.read(templates, LABELS, draws=2, seed=5) == alone
    shuffled = rng.sample(range(12), 7)
    assert llm.read([templates[i] for i in shuffled], LABELS, draws=2, seed=5) == [alone[i] for i in shuffled]


def test_many_questions_on_a_text_share_forwards_of_bounded_size(embedded: LLM) -> None:
    text = "".join(f"line {number} of a text\n" for number in range(40))
    templates = [f"{text}Is it {number}? {{{{v}}}}" for number in range(150)]  # more tokens than one forward takes
    found = embedded.read(templates, LABELS)
    assert found[149] == embedded.read(templates[149], LABELS)


def test_two_slots(llm: LLM) -> None:
    found = llm.read("x\n{{a}} and {{b}}", {"a": ["true", "null"], "b": ["red", "ab"]})
    assert set(found.probabilities) == {"a", "b"}


@pytest.mark.parametrize(
    ("template", "slots"),
    [("no slot", {"v": ["a", "b"]}), ("{{v}}", {"v": ["a"]}), ("{{v}}", {"w": ["a", "b"]}), ("{{v}}", {"v": "ab"}),
     ("{{v}}" + "x" * 99, {"v": ["a", "b"]})],
)  # fmt: skip
def test_refused(llm: LLM, template: str, slots: dict) -> None:
    with pytest.raises(InvalidRequest):
        llm.read(template, slots)


def test_a_score_is_the_causal_models(llm: LLM) -> None:
    text = "the name is red" * 60  # longer than what is encoded at a time
    found = llm.score(text)
    ids = llm.encode_prompt(text)
    hidden = llm.model.encode(torch.tensor(ids), llm.model.new_cache())
    logs = torch.log_softmax(llm.model.logits(hidden).double(), -1)
    expected = [float(logs[i, ids[i + 1]]) for i in range(len(ids) - 1)]
    assert found.logprobs == pytest.approx(expected, abs=2e-3)
    assert "".join(found.tokens) == text
    assert found.total == pytest.approx(math.fsum(expected), rel=1e-4)

"""Reads and scores against plain forwards."""

import math

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


def test_same_numbers_alone_and_in_a_batch(llm: LLM) -> None:
    templates = ["A line.\nGood? {{v}}.", "A line.\nBad? {{v}}", "Another.\nIs it {{v}} or not?"]
    together = llm.read(templates, LABELS, draws=2)
    alone = [llm.read(template, LABELS, draws=2) for template in templates]
    if llm.model.ops.batch_invariant:
        assert together == alone
    for one, other in zip(together, alone, strict=True):
        for label in LABELS["v"]:
            assert one.probabilities["v"][label] == pytest.approx(other.probabilities["v"][label], rel=1e-4)


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

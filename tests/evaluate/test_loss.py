"""The held-out loss is what the model says of a text, no more and no less."""

import math

import numpy as np
import pytest
import torch

from scumble import LLM
from scumble.evaluate.functions import Function, body_lines
from scumble.evaluate.loss import KINDS, function_loss, held_out_loss
from scumble.evaluate.tasks import Skipped
from tiny import EOS, tiny_model

from .conftest import FUNCTIONS

BOS = 2


@pytest.fixture(scope="module")
def functions() -> list[Function]:
    return [Function(f"f:{place}", "", text) for place, text in enumerate(FUNCTIONS)]


def nats(logits: torch.Tensor, ids: torch.Tensor) -> float:
    """Summed surprise of ids [N] under logits [N, V]."""
    return -float(torch.log_softmax(logits.double(), -1)[torch.arange(len(ids)), ids].sum())


@pytest.mark.parametrize("place", range(4))
def test_a_function_s_losses_are_those_of_a_plain_computation(llm, functions, place):
    text, seed, model = functions[place].text, 5, llm.model
    length, vocab = model.config.canvas_length, model.config.vocab_size
    row = torch.tensor([BOS, *llm.tokenizer.encode(text), EOS])
    draw = np.random.default_rng((seed, place))  # this order of draws is what makes two checkpoints comparable
    context = 1 + int(draw.integers(0, int(0.7 * len(row))))
    level = float(draw.random())
    noise = torch.from_numpy(draw.integers(0, vocab, length))
    replaced = torch.from_numpy(draw.random(length) < level)

    found = function_loss(llm, text, seed, place)

    hidden = model.encode(row, model.new_cache())
    logits = 30 * torch.tanh(hidden @ model.embed_tokens.weight.T / 30)
    assert found.nats["next_token"] == pytest.approx(nats(logits[:-1], row[1:]), rel=1e-4)
    assert (found.tokens["next_token"], found.bytes["next_token"]) == (len(row) - 1, len(text.encode()))

    wanted = row[context : context + length]
    canvas = torch.zeros(length, dtype=torch.long)
    canvas[: len(wanted)] = wanted
    canvas = torch.where(replaced, noise, canvas)
    cache = model.new_cache()
    model.encode(row[:context], cache)
    first = model.denoise_logits(canvas, cache)
    second = model.denoise_logits(canvas, cache, previous_logits=first / (0.4 + 0.4 * level))
    assert found.level == level
    assert found.nats["denoise"] == pytest.approx(nats(first[: len(wanted)], wanted), rel=1e-4)
    assert found.nats["denoise_self_conditioned"] == pytest.approx(nats(second[: len(wanted)], wanted), rel=1e-4)
    assert found.tokens["denoise"] == len(wanted)
    assert found.bytes["denoise"] == len(llm.tokenizer.decode(wanted.tolist()).encode())


def test_self_conditioning_is_as_cold_as_the_checkpoint_s_sampler(llm, functions):
    cold = LLM(llm.model, llm.tokenizer, defaults={"t_min": 0.1, "t_max": 0.1})
    plain, tempered = (function_loss(one, functions[0].text, 5, 0).nats for one in (llm, cold))
    assert plain["denoise"] == tempered["denoise"]
    assert plain["denoise_self_conditioned"] != tempered["denoise_self_conditioned"]


def test_the_same_seed_gives_the_same_figures(llm, functions):
    one, again, other = (held_out_loss(llm, functions, seed) for seed in (1, 1, 2))
    assert one == again
    assert one["denoise"] != other["denoise"]
    causal = [report["next_token"]["nats_per_token"]["mean"] for report in (one, other)]
    assert causal[0] == pytest.approx(causal[1], rel=1e-5), "it has no noise; only where a text is cut differs"


def test_figures_are_sums_over_sums(llm, functions):
    report = held_out_loss(llm, functions, 3)
    parts = [function_loss(llm, function.text, 3, place) for place, function in enumerate(functions)]
    for kind in KINDS:
        total = sum(part.nats[kind] for part in parts)
        per_token = report[kind]["nats_per_token"]
        assert per_token["mean"] == pytest.approx(total / sum(part.tokens[kind] for part in parts))
        assert per_token["low"] <= per_token["mean"] <= per_token["high"]
        bits = total / math.log(2) / sum(part.bytes[kind] for part in parts)
        assert report[kind]["bits_per_byte"]["mean"] == pytest.approx(bits)
    quarters = report["denoise_by_level"]
    borders = [(quarter["from"], quarter["to"]) for quarter in quarters]
    assert borders == [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)]
    counted = [quarter["nats_per_token"]["count"] if quarter["nats_per_token"] else 0 for quarter in quarters]
    assert counted == [sum(int(part.level * 4) == quarter for part in parts) for quarter in range(4)]


def test_a_model_that_knows_nothing_is_surprised_by_every_token_alike(llm, functions):
    blank = LLM(tiny_model(vocab_size=llm.model.config.vocab_size), llm.tokenizer)
    blank.model.embed_tokens.weight.zero_()
    report = held_out_loss(blank, functions, 0)
    for kind in KINDS:
        assert report[kind]["nats_per_token"]["mean"] == pytest.approx(math.log(llm.model.config.vocab_size), rel=1e-5)


def test_what_does_not_fit_is_left_out_and_counted(llm, functions):
    said = []
    long = Function("long", "", "é" * 3000)
    report = held_out_loss(llm, [*functions, long], 0, said.append)
    assert (report["functions"], report["too_long"]) == (4, 1)
    assert said == [0, 1, 2, 3, 4]
    assert report["next_token"] == held_out_loss(llm, functions, 0)["next_token"]
    with pytest.raises(Skipped, match="no function fits"):
        held_out_loss(llm, [long], 0)


def test_the_shortest_text_has_a_loss(llm):
    assert body_lines("x\n") == [0]
    for place in range(20):
        sums = function_loss(llm, "x", 0, place)
        assert sums.tokens["next_token"] == 2
        assert 1 <= sums.tokens["denoise"] <= 2
        assert all(math.isfinite(value) for value in sums.nats.values())

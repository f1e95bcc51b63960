"""Revision: the causal model corrects what it reads, and nothing that was promised changes by it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble import GenerationConfig, InvalidRequest
from scumble.decode import make_request
from scumble.decode.select import edits
from scumble.events import TokenLogprobs
from tiny import EOS, answer, prompt, tiny_model

MODEL = tiny_model()
L = MODEL.config.canvas_length
FREE = {"ignore_eos": True, "max_denoising_steps": 2, "confidence_threshold": 0.0, "entropy_bound": 3.0}


def revised(rounds: int, **changes):
    return GenerationConfig(revisions=rounds, **{"max_new_tokens": L, "seed": 3, **FREE, **changes})


def mean_logprob(context, ids):
    """Of ids behind a context, from one encode of the whole text."""
    hidden = MODEL.encode(torch.tensor(context + ids), MODEL.new_cache())
    logprobs = torch.log_softmax(MODEL.logits(hidden), -1)[len(context) - 1 : -1]
    return float(logprobs.gather(1, torch.tensor(ids)[:, None]).mean())


def text(*tokens):
    """(id, its log-probability, the likeliest id, its log-probability) by place."""
    return [TokenLogprobs(own, logprob, ((best, highest),)) for own, logprob, best, highest in tokens]


def test_the_causal_model_s_token_is_tried_where_it_is_surprised_most():
    read = text((5, -0.1, 5, -0.1), (6, -7.0, 9, -0.2), (7, -3.0, 8, -0.5))
    assert edits(read) == [
        (5, 9, 7), (5, 9, 6, 7), (5, 7),
        (5, 6, 8), (5, 6, 8, 7), (5, 6),
    ]  # fmt: skip


def test_a_text_without_surprises_stays_as_it_is():
    assert edits(text((5, -0.1, 5, -0.1), (6, -2.0, 6, -2.0))) == []
    assert edits(text((5, -3.0, 6, -0.1))) == [(6,), (6, 5)], "nothing is no text"


@given(st.integers(1, 3), st.integers(1, 6), st.integers(0, 2**64 - 1))
@settings(deadline=None, max_examples=10)
def test_more_rounds_never_read_worse(candidates, rounds, seed):
    context = prompt(5)
    scores = [
        mean_logprob(context, answer(MODEL, [context], revised(count, best_of=candidates, seed=seed))[0]["ids"])
        for count in (0, rounds)
    ]
    assert scores[1] >= scores[0] - 1e-4


def test_what_is_changed_reads_better():
    context = prompt(5)
    plain, rounds = (answer(MODEL, [context], revised(count))[0]["ids"] for count in (0, 8))
    assert plain != rounds
    assert mean_logprob(context, rounds) > mean_logprob(context, plain) + 0.1


def test_a_canvas_commits_no_more_than_it_has_room_for():
    row = answer(MODEL, [prompt(5)], revised(6, max_new_tokens=2 * L + 3))[0]
    sizes = [len(commit.ids) for commit in row["commits"]]
    assert all(size <= L for size in sizes)
    assert sum(sizes) == 2 * L + 3


def test_rounds_are_counted_and_end_when_nothing_is_left_to_try():
    for rounds in (0, 1, 5):
        row = answer(MODEL, [prompt(5)], revised(rounds, best_of=2))[0]
        assert [commit.reads for commit in row["commits"]] == [1 + rounds]
    assert answer(MODEL, [prompt(5)], revised(0))[0]["commits"][0].reads == 0
    row = answer(MODEL, [prompt(5)], revised(64, max_new_tokens=1))[0]
    assert row["commits"][0].reads < 6, "of one token there are few edits"


def test_what_is_pinned_stands_where_it_was_pinned():
    plain, rounds = (answer(MODEL, [prompt(5)], revised(count), pinned={2: 40, 5: 41})[0]["ids"] for count in (0, 8))
    assert plain == rounds
    assert (rounds[2], rounds[5]) == (40, 41)


def test_an_answer_still_begins_as_it_must():
    for seed in range(8):
        row = answer(MODEL, [prompt(5)], revised(6, seed=seed), first=[11, 12])[0]
        assert row["ids"][0] in (11, 12)


def test_a_revised_text_that_came_to_its_end_ends_there():
    ended = 0
    for seed in range(20):
        ids = answer(MODEL, [prompt(5)], revised(4, seed=seed, ignore_eos=False, best_of=2))[0]["ids"]
        assert EOS not in ids[:-1]
        ended += ids[-1] == EOS
    assert ended


@pytest.mark.parametrize("wrong", [-1, 65, 1.5, True, "2"])
def test_numbers_of_rounds_that_are_none(wrong):
    with pytest.raises(InvalidRequest, match=r"revisions must be a whole number in 0 … 64"):
        GenerationConfig(revisions=wrong)


def test_only_a_canvas_is_revised():
    with pytest.raises(InvalidRequest, match="revisions correct a canvas and need decoder='diffusion'"):
        make_request(prompt(3), GenerationConfig(revisions=2, decoder="autoregressive"), {}, MODEL.config)
    stored = make_request(prompt(3), GenerationConfig(decoder="autoregressive"), {"revisions": 4}, MODEL.config)
    assert stored.config.revisions == 0  # a checkpoint's default is for its canvases

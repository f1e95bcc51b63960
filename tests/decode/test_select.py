"""Several candidates a canvas: each is denoised as it would be alone, the likeliest is committed, the rest are gone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble import GenerationConfig, InvalidRequest, ScumbleError
from scumble.decode import make_request
from scumble.diffusion import SeededNoise
from tiny import EOS, answer, prompt, tiny_model

MODEL = tiny_model()
L = MODEL.config.canvas_length
FREE = {"ignore_eos": True, "max_denoising_steps": 4, "confidence_threshold": 2.0}


def best_of(candidates: int, **settings):
    return GenerationConfig(best_of=candidates, **{"max_new_tokens": L, "seed": 3, **FREE, **settings})


def finished_canvases(row, canvas=0):
    """Ids of every candidate's canvas after its last pass, by candidate."""
    last = {event.candidate: event for event in row["passes"] if event.canvas_index == canvas}
    return [last[number].argmax.tolist() for number in sorted(last)]


def mean_logprob(context, ids):
    """Of ids behind a context, from one encode of the whole text."""
    hidden = MODEL.encode(torch.tensor(context + ids), MODEL.new_cache())
    logprobs = torch.log_softmax(MODEL.logits(hidden), -1)[len(context) - 1 : -1]
    return float(logprobs.gather(1, torch.tensor(ids)[:, None]).mean())


@given(st.integers(1, 5), st.integers(0, 2**64 - 1))
@settings(deadline=None, max_examples=10)
def test_the_likeliest_candidate_is_committed(candidates, seed):
    row = answer(MODEL, [prompt(5)], best_of(candidates, seed=seed))[0]
    canvases = finished_canvases(row)
    assert len(canvases) == candidates
    scores = [mean_logprob(prompt(5), ids) for ids in canvases]
    assert row["ids"] in canvases
    assert mean_logprob(prompt(5), row["ids"]) == pytest.approx(max(scores), abs=1e-4)


def test_each_candidate_is_what_its_noise_alone_would_give():
    together = answer(MODEL, [prompt(5)], best_of(3))[0]
    for number in range(3):
        alone = answer(MODEL, [prompt(5)], best_of(1), noise=SeededNoise(3, number))[0]
        own = [event for event in together["passes"] if event.candidate == number]
        assert [event.canvas_out.tolist() for event in own] == [event.canvas_out.tolist() for event in alone["passes"]]
    assert len({tuple(ids) for ids in finished_canvases(together)}) == 3


def test_the_first_candidate_has_the_noise_of_a_request_without_others():
    assert answer(MODEL, [prompt(5)], best_of(4))[0]["passes"][0].canvas_in.tolist() == (
        answer(MODEL, [prompt(5)], best_of(1))[0]["passes"][0].canvas_in.tolist()
    )


def test_the_next_canvas_goes_on_behind_the_committed_one():
    """The second canvas's choice, and the logprobs of the whole answer, are those of the text as it was committed."""
    row = answer(MODEL, [prompt(5)], best_of(3, max_new_tokens=2 * L, logprobs=0))[0]
    first, second = row["ids"][:L], row["ids"][L:]
    scores = [mean_logprob(prompt(5) + first, ids) for ids in finished_canvases(row, canvas=1)]
    assert mean_logprob(prompt(5) + first, second) == pytest.approx(max(scores), abs=1e-4)
    found = [entry.logprob for commit in row["commits"] for entry in commit.logprobs]
    assert sum(found) / len(found) == pytest.approx(mean_logprob(prompt(5), row["ids"]), abs=1e-4)


def test_an_end_counts_as_a_token_and_an_unlikely_one_weighs_against_its_text():
    """Two candidates of which one has the end id: the one with the higher mean log-probability, end id included."""
    ended, passed_over = 0, 0
    for seed in range(200):
        row = answer(MODEL, [prompt(5)], best_of(2, seed=seed, ignore_eos=False))[0]
        canvases = [ids[: ids.index(EOS) + 1] if EOS in ids else ids for ids in finished_canvases(row)]
        if sum(ids[-1] == EOS for ids in canvases) != 1:
            continue
        best = max(canvases, key=lambda ids: mean_logprob(prompt(5), ids))
        assert row["ids"] == best
        assert row["answer"].finish_reason == ("stop" if best[-1] == EOS else "length")
        ended += best[-1] == EOS
        passed_over += best[-1] != EOS
    assert ended >= 1
    assert passed_over >= 1


def test_passes_are_the_slowest_candidate_s_and_evaluations_are_all():
    row = answer(MODEL, [prompt(5)], best_of(4, max_new_tokens=3 * L, confidence_threshold=3.0))[0]
    taken: dict[tuple[int, int], int] = {}
    for event in row["passes"]:
        taken[event.canvas_index, event.candidate] = event.pass_index + 1
    assert row["answer"].evaluations == len(row["passes"]) == sum(taken.values())
    assert row["answer"].passes == tuple(max(taken[canvas, n] for n in range(4)) for canvas in range(3))


def test_pins_and_the_draft_are_every_candidate_s():
    row = answer(MODEL, [prompt(5)], best_of(3), draft=prompt(L, 9), pinned={2: 40})[0]
    starts = [event.canvas_in.tolist() for event in row["passes"] if event.pass_index == 0]
    expected = prompt(L, 9)
    expected[2] = 40
    assert starts == [expected] * 3
    assert all(ids[2] == 40 for ids in finished_canvases(row))


def test_a_draft_that_reads_better_than_all_candidates_is_committed_as_it_stands():
    context = prompt(5)
    config = GenerationConfig(decoder="autoregressive", temperature=0, max_new_tokens=2 * L, ignore_eos=True)
    likely = answer(MODEL, [context], config)[0]["ids"]
    row = answer(MODEL, [context], best_of(3, max_new_tokens=2 * L), draft=likely)[0]
    assert all(ids not in finished_canvases(row, canvas) for canvas, ids in enumerate((likely[:L], likely[L:])))
    assert row["ids"] == likely
    # with nothing to choose among, what the passes made of it is the answer
    alone = answer(MODEL, [context], best_of(1, max_new_tokens=L), draft=likely)[0]
    assert [alone["ids"]] == finished_canvases(alone)


def test_a_draft_that_breaks_a_promise_is_no_candidate():
    context = prompt(5)
    config = GenerationConfig(decoder="autoregressive", temperature=0, max_new_tokens=L, ignore_eos=True)
    likely = answer(MODEL, [context], config)[0]["ids"]
    pinned = {0: (likely[0] + 1) % 97}
    assert answer(MODEL, [context], best_of(3), draft=likely, pinned=pinned)[0]["ids"][0] == pinned[0]
    other = (likely[0] + 1) % 97
    assert answer(MODEL, [context], best_of(3), draft=likely, first=[other])[0]["ids"][0] == other


@pytest.mark.parametrize("wrong", [0, -1, 65, 2.5, True, "3"])
def test_numbers_of_candidates_that_are_none(wrong):
    with pytest.raises(InvalidRequest, match=r"best_of must be a whole number in 1 … 64"):
        GenerationConfig(best_of=wrong)


def test_only_a_canvas_has_candidates():
    with pytest.raises(InvalidRequest, match="best_of compares candidates of a canvas"):
        make_request(prompt(3), GenerationConfig(best_of=2, decoder="autoregressive"), {}, MODEL.config)
    stored = make_request(prompt(3), GenerationConfig(decoder="autoregressive"), {"best_of": 4}, MODEL.config)
    assert stored.config.best_of == 1  # a checkpoint's default is for its canvases


def test_given_noise_is_for_one_candidate():
    with pytest.raises(InvalidRequest, match="needs best_of=1, found best_of=2"):
        make_request(prompt(3), GenerationConfig(best_of=2), {}, MODEL.config, SeededNoise(1))


def test_an_output_that_is_not_a_number_is_an_error():
    model = tiny_model()
    model.norm.weight[3] = float("nan")
    with pytest.raises(ScumbleError, match="must be finite numbers"):
        answer(model, [prompt(4)], best_of(2))

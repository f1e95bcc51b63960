"""Canvas, schedule, acceptance and stopping against restatements in plain Python."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble.diffusion import (
    Canvas,
    EntropyBound,
    LinearTemperature,
    Proposal,
    SeededNoise,
    StableAndConfident,
    committed_ids,
    start_canvas,
)

# Entropies in multiples of 1/64 nat: sums are exact, so the restatement cannot differ by rounding.
entropies = st.lists(st.integers(0, 64).map(lambda n: n / 64), min_size=1, max_size=24)
bounds = st.integers(1, 128).map(lambda n: n / 64)


def canvas_of(pinned: list[bool], seed: int = 0) -> Canvas:
    return Canvas(SeededNoise(seed).initial(0, len(pinned), 50), torch.tensor(pinned), 0)


def proposal_of(entropy: list[float], seed: int = 1) -> Proposal:
    noise = SeededNoise(seed)
    return Proposal(noise.initial(0, len(entropy), 50), noise.initial(1, len(entropy), 50), torch.tensor(entropy))


def accepted_plainly(entropy: list[float], pinned: list[bool], bound: float) -> list[bool]:
    """In ascending order of entropy (the lower position first on a tie), while what came before sums to ≤ bound."""
    accepted = list(pinned)
    before = 0.0
    for position in sorted((i for i in range(len(entropy)) if not pinned[i]), key=lambda i: (entropy[i], i)):
        if before <= bound:
            accepted[position] = True
        before += entropy[position]
    return accepted


@given(st.data(), entropies, bounds)
@settings(deadline=None)
def test_acceptance_is_what_its_definition_says(data, entropy, bound):
    pinned = data.draw(st.lists(st.booleans(), min_size=len(entropy), max_size=len(entropy)))
    accepted = EntropyBound(bound).accept(canvas_of(pinned), proposal_of(entropy))
    assert accepted.tolist() == accepted_plainly(entropy, pinned, bound)


@given(st.lists(st.floats(0.125, 12, width=32), min_size=1, max_size=64), st.floats(1e-9, 1e-6))
@settings(deadline=None)
def test_at_least_one_position_is_always_accepted(entropy, bound):
    accepted = EntropyBound(bound).accept(canvas_of([False] * len(entropy)), proposal_of(entropy))
    assert int(accepted.sum()) == 1
    assert entropy[int(accepted.int().argmax())] == min(entropy)


@given(st.data(), entropies, bounds)
@settings(deadline=None)
def test_pinned_positions_cost_nothing_and_never_change(data, entropy, bound):
    """However uncertain the model is about them, the same free positions are accepted, and their ids stay."""
    pinned = data.draw(st.lists(st.booleans(), min_size=len(entropy), max_size=len(entropy)))
    canvas, rule = canvas_of(pinned), EntropyBound(bound)
    wild = [99.0 if fixed else value for value, fixed in zip(entropy, pinned, strict=True)]
    accepted = rule.accept(canvas, proposal_of(entropy))
    assert torch.equal(accepted, rule.accept(canvas, proposal_of(wild)))
    following = rule.renoise(canvas, proposal_of(entropy), accepted, SeededNoise(3).renoise(0, 0, len(entropy), 50))
    assert torch.equal(following.ids[canvas.pinned], canvas.ids[canvas.pinned])
    if not all(pinned):
        assert bool((accepted & ~canvas.pinned).any())


@given(st.data(), entropies, bounds)
@settings(deadline=None)
def test_what_already_stands_on_the_canvas_may_cost_nothing(data, entropy, bound):
    """budget="changed": the bound is spent on changes alone, and at least one change is always accepted."""
    flags = st.lists(st.booleans(), min_size=len(entropy), max_size=len(entropy))
    repeated, pinned = data.draw(flags), data.draw(flags)
    canvas, proposal = canvas_of(pinned), proposal_of(entropy)
    proposal = replace(proposal, sample=torch.where(torch.tensor(repeated), canvas.ids, canvas.ids + 1))
    held = [a or b for a, b in zip(repeated, pinned, strict=True)]
    accepted = EntropyBound(bound, "changed").accept(canvas, proposal)
    assert accepted.tolist() == accepted_plainly(entropy, held, bound)
    following = EntropyBound(bound, "changed").renoise(canvas, proposal, accepted, canvas.ids + 2)
    assert following.ids[torch.tensor(held)].tolist() == canvas.ids[torch.tensor(held)].tolist()


def test_renoise_takes_the_sample_where_accepted_and_noise_elsewhere():
    canvas, proposal = canvas_of([False, False, False, True]), proposal_of([0.0, 0.5, 0.5, 0.5])
    fresh = torch.tensor([40, 41, 42, 43])
    following = EntropyBound(0.1).renoise(canvas, proposal, torch.tensor([True, False, True, True]), fresh)
    assert following.ids.tolist() == [int(proposal.sample[0]), 41, int(proposal.sample[2]), int(canvas.ids[3])]


def test_the_schedule_starts_at_t_max_and_ends_one_step_above_t_min():
    schedule = LinearTemperature(0.4, 0.8, 4)
    assert [schedule(i) for i in range(4)] == pytest.approx([0.8, 0.7, 0.6, 0.5])
    assert LinearTemperature(0.4, 0.8, 1)(0) == pytest.approx(0.8)
    assert LinearTemperature(0.5, 0.5, 3)(2) == pytest.approx(0.5)


@given(st.floats(1e-4, 10), st.floats(0, 10), st.integers(1, 500))
def test_the_schedule_falls_and_stays_in_its_range(t_min, more, passes):
    schedule = LinearTemperature(t_min, t_min + more, passes)
    values = [schedule(i) for i in range(passes)]
    assert values == sorted(values, reverse=True)
    assert t_min <= values[-1] <= values[0] <= (t_min + more) * (1 + 1e-12)


@given(st.data(), st.integers(0, 4), st.booleans())
@settings(deadline=None)
def test_argmax_history_stops_when_confident_and_unchanged_for_that_many_passes(data, stability, confident):
    passes = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=6))  # which of two argmaxes each pass had
    kinds = [torch.tensor([5, 6, 7]), torch.tensor([5, 6, 8])]
    entropy = torch.full((3,), 0.001 if confident else 0.01)
    rule = StableAndConfident(stability, 0.005)
    now = Proposal(kinds[passes[-1]], kinds[0], entropy)
    done = rule.done(canvas_of([False] * 3), now, [kinds[kind] for kind in passes[:-1]])
    recent = passes[-1 - stability :]
    assert done == (confident and len(recent) == stability + 1 and len(set(recent)) == 1)


def test_argmax_is_canvas_stops_when_the_canvas_that_went_in_comes_out():
    rule = StableAndConfident(9, 0.005, "argmax_is_canvas")
    canvas = canvas_of([False, False, True])
    same = canvas.ids.clone()
    same[2] = (same[2] + 1) % 50  # pinned: what the model thinks there does not matter
    sure = torch.full((3,), 0.001)
    assert rule.done(canvas, Proposal(same, same, sure), [])
    other = same.clone()
    other[0] = (other[0] + 1) % 50
    assert not rule.done(canvas, Proposal(other, same, sure), [])
    assert not rule.done(canvas, Proposal(same, same, sure * 10), [])


def test_confidence_is_the_mean_over_free_positions_and_zero_never_stops():
    canvas = canvas_of([True, False])
    ids = torch.tensor([1, 2])
    assert StableAndConfident(0, 0.005).done(canvas, Proposal(ids, ids, torch.tensor([9.0, 0.001])), [])
    assert not StableAndConfident(0, 0.005).done(canvas, Proposal(ids, ids, torch.tensor([0.0, 0.008])), [])
    assert not StableAndConfident(0, 0.0).done(canvas, Proposal(ids, ids, torch.zeros(2)), [])
    assert not StableAndConfident(0, 1.0).done(canvas, Proposal(ids, ids, torch.tensor([0.0, float("nan")])), [])


def test_a_canvas_without_free_positions_is_done_at_once():
    canvas = canvas_of([True, True])
    assert StableAndConfident(3, 0.0).done(canvas, proposal_of([5.0, 5.0]), [])


def test_commit_rules():
    canvas, proposal = canvas_of([False, True]), proposal_of([0.1, 0.1])
    assert committed_ids("argmax", canvas, proposal).tolist() == [int(proposal.argmax[0]), int(canvas.ids[1])]
    assert committed_ids("sample", canvas, proposal).tolist() == [int(proposal.sample[0]), int(canvas.ids[1])]


def test_a_canvas_starts_from_noise_then_draft_then_pins():
    noise = SeededNoise(4)
    canvas = start_canvas(noise, 2, 6, 50, draft=torch.tensor([10, 11, 12]), pinned={1: 30, 5: 31})
    expected = noise.initial(2, 6, 50)
    expected[:3] = torch.tensor([10, 11, 12])
    expected[1], expected[5] = 30, 31
    assert torch.equal(canvas.ids, expected)
    assert canvas.pinned.tolist() == [False, True, False, False, False, True]
    assert canvas.index == 2
    assert canvas.replace(torch.zeros(6, dtype=torch.int64)).ids.tolist() == [0, 30, 0, 0, 0, 31]

"""Canvas, schedule, acceptance and stopping against restatements in plain Python, alone and side by side."""

import pytest
import torch
import torch.nn.functional as F
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
    count_unchanged,
    renoise,
    start_canvas,
)

# Entropies in multiples of 1/64 nat: sums are exact, so the restatement cannot differ by rounding.
entropies = st.lists(st.integers(0, 64).map(lambda n: n / 64), min_size=1, max_size=24)
bounds = st.integers(1, 128).map(lambda n: n / 64)
CPU = torch.device("cpu")


def canvas_of(pinned: list[bool], seed: int = 0) -> Canvas:
    return Canvas(SeededNoise(seed).initial(0, len(pinned), 50)[None], torch.tensor([pinned]))


def proposal_of(entropy: list[float], seed: int = 1) -> Proposal:
    noise = SeededNoise(seed)
    ids = noise.initial(0, len(entropy), 50), noise.initial(1, len(entropy), 50)
    return Proposal(ids[0][None], ids[1][None], torch.tensor([entropy]))


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
    assert accepted[0].tolist() == accepted_plainly(entropy, pinned, bound)


@given(st.data(), st.lists(st.tuples(entropies, bounds), min_size=2, max_size=5))
@settings(deadline=None, max_examples=30)
def test_canvases_side_by_side_are_judged_as_they_are_alone(data, slots):
    """Unequal lengths: a short canvas is pinned behind its end. Every canvas has settings of its own."""
    length = max(len(entropy) for entropy, _ in slots)
    pins = [data.draw(st.lists(st.booleans(), min_size=len(e), max_size=len(e))) for e, _ in slots]
    alone = [(canvas_of(pinned), proposal_of(e)) for pinned, (e, _) in zip(pins, slots, strict=True)]

    def side_by_side(tensors, value):
        return torch.cat([F.pad(tensor, (0, length - tensor.shape[1]), value=value) for tensor in tensors])

    canvas = Canvas(side_by_side([c.ids for c, _ in alone], 7), side_by_side([c.pinned for c, _ in alone], True))
    proposal = Proposal(
        *(side_by_side([getattr(p, name) for _, p in alone], 7) for name in ("argmax", "sample", "entropy"))
    )
    bound = EntropyBound.stacked([EntropyBound(b) for _, b in slots], CPU)
    rules = [
        StableAndConfident(place % 3, 0.5, ("argmax_history", "argmax_is_canvas")[place % 2])
        for place in range(len(slots))
    ]
    unchanged = torch.arange(len(slots))
    accepted = bound.accept(canvas, proposal)
    done = StableAndConfident.stacked(rules, CPU).done(canvas, proposal, unchanged)
    for place, (own, proposed) in enumerate(alone):
        size = own.ids.shape[1]
        assert torch.equal(accepted[place, :size], EntropyBound(slots[place][1]).accept(own, proposed)[0])
        assert bool(done[place]) == bool(rules[place].done(own, proposed, unchanged[place : place + 1]))


@given(st.lists(st.floats(0.125, 12, width=32), min_size=1, max_size=64), st.floats(1e-9, 1e-6))
@settings(deadline=None)
def test_at_least_one_position_is_always_accepted(entropy, bound):
    accepted = EntropyBound(bound).accept(canvas_of([False] * len(entropy)), proposal_of(entropy))
    assert int(accepted.sum()) == 1
    assert entropy[int(accepted[0].int().argmax())] == min(entropy)


@given(st.data(), entropies, bounds)
@settings(deadline=None)
def test_pinned_positions_cost_nothing_and_never_change(data, entropy, bound):
    """However uncertain the model is about them, the same free positions are accepted, and their ids stay."""
    pinned = data.draw(st.lists(st.booleans(), min_size=len(entropy), max_size=len(entropy)))
    canvas, rule = canvas_of(pinned), EntropyBound(bound)
    wild = [99.0 if fixed else value for value, fixed in zip(entropy, pinned, strict=True)]
    accepted = rule.accept(canvas, proposal_of(entropy))
    assert torch.equal(accepted, rule.accept(canvas, proposal_of(wild)))
    fresh = SeededNoise(3).renoise(0, 0, len(entropy), 50)[None]
    following = renoise(canvas, proposal_of(entropy), accepted, fresh)
    assert torch.equal(following.ids[canvas.pinned], canvas.ids[canvas.pinned])
    if not all(pinned):
        assert bool((accepted & ~canvas.pinned).any())


def test_renoise_takes_the_sample_where_accepted_and_noise_elsewhere():
    canvas, proposal = canvas_of([False, False, False, True]), proposal_of([0.0, 0.5, 0.5, 0.5])
    fresh = torch.tensor([[40, 41, 42, 43]])
    following = renoise(canvas, proposal, torch.tensor([[True, False, True, True]]), fresh)
    sample = proposal.sample[0].tolist()
    assert following.ids[0].tolist() == [sample[0], 41, sample[2], int(canvas.ids[0, 3])]


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
    kinds = [torch.tensor([[5, 6, 7]]), torch.tensor([[5, 6, 8]])]
    rule = StableAndConfident(stability, 0.005)
    previous, unchanged = torch.full((1, 3), -1), torch.zeros(1, dtype=torch.int64)
    for kind in passes:
        unchanged, previous = count_unchanged(kinds[kind], previous, unchanged), kinds[kind]
    now = Proposal(previous, kinds[0], torch.full((1, 3), 0.001 if confident else 0.01))
    done = rule.done(canvas_of([False] * 3), now, unchanged)
    recent = passes[-1 - stability :]
    assert bool(done) == (confident and len(recent) == stability + 1 and len(set(recent)) == 1)


def done(rule: StableAndConfident, canvas: Canvas, ids: torch.Tensor, entropy: list[float]) -> bool:
    return bool(rule.done(canvas, Proposal(ids, ids, torch.tensor([entropy])), torch.zeros(1, dtype=torch.int64)))


def test_argmax_is_canvas_stops_when_the_canvas_that_went_in_comes_out():
    rule = StableAndConfident(9, 0.005, "argmax_is_canvas")
    canvas = canvas_of([False, False, True])
    same = canvas.ids.clone()
    same[0, 2] = (same[0, 2] + 1) % 50  # pinned: what the model thinks there does not matter
    assert done(rule, canvas, same, [0.001] * 3)
    other = same.clone()
    other[0, 0] = (other[0, 0] + 1) % 50
    assert not done(rule, canvas, other, [0.001] * 3)
    assert not done(rule, canvas, same, [0.01] * 3)


def test_confidence_is_the_mean_over_free_positions_and_zero_never_stops():
    canvas, ids = canvas_of([True, False]), torch.tensor([[1, 2]])
    assert done(StableAndConfident(0, 0.005), canvas, ids, [9.0, 0.001])
    assert not done(StableAndConfident(0, 0.005), canvas, ids, [0.0, 0.008])
    assert not done(StableAndConfident(0, 0.0), canvas, ids, [0.0, 0.0])
    assert not done(StableAndConfident(0, 1.0), canvas, ids, [0.0, float("nan")])


def test_a_canvas_without_free_positions_is_done_at_once():
    assert done(StableAndConfident(3, 0.0), canvas_of([True, True]), torch.tensor([[1, 2]]), [5.0, 5.0])


def test_commit_rules():
    canvas, proposal = canvas_of([False, True]), proposal_of([0.1, 0.1])
    pinned = int(canvas.ids[0, 1])
    assert committed_ids(False, canvas, proposal)[0].tolist() == [int(proposal.argmax[0, 0]), pinned]
    assert committed_ids(True, canvas, proposal)[0].tolist() == [int(proposal.sample[0, 0]), pinned]


def test_a_canvas_starts_from_noise_then_draft_then_pins():
    noise = SeededNoise(4)
    canvas = start_canvas(noise, 2, 6, 50, draft=(10, 11, 12), pinned={1: 30, 5: 31})
    expected = noise.initial(2, 6, 50)
    expected[:3] = torch.tensor([10, 11, 12])
    expected[1], expected[5] = 30, 31
    assert torch.equal(canvas.ids[0], expected)
    assert canvas.pinned[0].tolist() == [False, True, False, False, False, True]
    assert canvas.replace(torch.zeros(1, 6, dtype=torch.int64)).ids[0].tolist() == [0, 30, 0, 0, 0, 31]

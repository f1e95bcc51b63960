"""Fill-in-the-middle rows: nothing is lost but far context, and the hole is where a person would leave one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scumble.train.batches import Batches, Specials
from scumble.train.infill import InfillTokens, hole, infill_rows

NEWLINE = 10
TOKENS = InfillTokens(prefix=5, suffix=6, middle=7, newline=np.arange(64) == NEWLINE)
bodies = st.lists(st.integers(8, 63), min_size=2, max_size=80).map(np.array)


@given(st.lists(bodies, min_size=1, max_size=5), st.integers(0, 2**31), st.integers(48, 200))
def test_a_row_is_before_after_middle_around_one_hole(documents, seed, length):
    rows, prompt = infill_rows(documents, TOKENS, 2, 1, length, np.random.default_rng(seed))
    for body, row in zip(documents, rows, strict=True):
        assert len(row) <= length
        assert row[0] == 2
        assert row[1] == 5
        assert row[prompt - 1] == 7, "all prompts end at the same place"
        split = 2 + list(row[2:]).index(6)
        before, after, middle = row[2:split], row[split + 1 : prompt - 1], row[prompt:]
        if middle[-1] == 1:
            middle = middle[:-1]
            joined = [*before, *middle, *after]
            text = ",".join(map(str, body))
            assert ",".join(map(str, joined)) in text, "the parts are neighbours in the document"


@given(bodies, st.integers(0, 2**31))
def test_a_hole_is_never_empty(body, seed):
    begin, end = hole(body, TOKENS.newline, np.random.default_rng(seed))
    assert 0 <= begin < end <= len(body)


def test_half_of_the_holes_are_exactly_one_line():
    body = np.array([20, 21, 22, NEWLINE, 23, 24, 25, 26, NEWLINE, 27, 28, NEWLINE, 29, 30, 31])
    holes = [hole(body, TOKENS.newline, np.random.default_rng(seed)) for seed in range(600)]
    lines = [(4, 8), (9, 11), (12, 15)]
    share = sum(found in lines for found in holes) / 600
    assert share == pytest.approx(0.6, abs=0.1)  # 0.5, and multi-line holes that run into the document's end


def test_infill_batches_appear_with_their_share_and_are_reproducible():
    documents = [np.arange(8, 8 + n) for n in range(10, 50)]
    sizes = np.array([len(document) for document in documents])
    make = lambda: Batches(  # noqa: E731
        documents, sizes, Specials(2, 1, 0), tokens=100, length=64, canvas=8, prompt_share=0.5, seed=4, infill=TOKENS
    )
    one, two = make(), make()
    infilled = 0
    for step in range(200):
        batch, again = one.batch(step, 0.5), two.batch(step, 0.5)
        np.testing.assert_array_equal(batch.ids, again.ids)
        infilled += int(batch.ids[0, 1] == 5)
        assert (batch.ids.shape[1] - batch.prompt) % 8 == 0
    assert 60 < infilled < 140
    assert not any(one.batch(step).ids[0, 1] == 5 for step in range(50))


def test_batches_draw_their_canvas_length_down_to_the_shortest():
    documents = [np.arange(8, 8 + n) for n in range(10, 50)]
    sizes = np.array([len(document) for document in documents])
    batches = Batches(
        documents, sizes, Specials(2, 1, 0), tokens=100, length=64, canvas=16, shortest_canvas=4, prompt_share=0.5,
        seed=4,
    )  # fmt: skip
    drawn = [batches.batch(step) for step in range(60)]
    assert {batch.canvas for batch in drawn} == {16, 8, 4}
    assert all((batch.ids.shape[1] - batch.prompt) % batch.canvas == 0 for batch in drawn)
    assert all(batch.lengths.max() <= batch.ids.shape[1] < batch.lengths.max() + batch.canvas for batch in drawn)

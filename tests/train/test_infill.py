"""Fill-in-the-middle rows: nothing is lost but far context, and the hole is where a person would leave one."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scumble.llm import embedded_path
from scumble.text import Tokenizer
from scumble.train.batches import Batches, Mix, Specials
from scumble.train.docstring import docstring_finder
from scumble.train.infill import InfillTokens, draw_kind, hole, infill_rows, infill_tokens

NEWLINE = 10
TOKENS = InfillTokens(prefix=5, suffix=6, middle=7, newline=np.arange(64) == NEWLINE)
bodies = st.lists(st.integers(8, 63), min_size=2, max_size=80).map(np.array)


@given(st.lists(bodies, min_size=1, max_size=5), st.integers(0, 2**31), st.integers(48, 200))
def test_a_row_is_before_after_middle_around_one_hole(documents, seed, length):
    rng = np.random.default_rng(seed)
    rows, prompt, drafts = infill_rows(documents, TOKENS, 2, 1, length, draw_kind(rng), False, rng)
    assert not any(map(len, drafts)), "nothing is damaged"
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


@given(bodies, st.sampled_from(["line", "lines", "span"]), st.integers(0, 2**31))
def test_a_hole_is_never_empty(body, kind, seed):
    begin, end = hole(body, TOKENS.newline, kind, np.random.default_rng(seed))
    assert 0 <= begin < end <= len(body)


def test_the_holes_of_a_line_batch_are_exactly_one_line():
    body = np.array([20, 21, 22, NEWLINE, 23, 24, 25, 26, NEWLINE, 27, 28, NEWLINE, 29, 30, 31])
    holes = {hole(body, TOKENS.newline, "line", np.random.default_rng(seed)) for seed in range(60)}
    assert holes == {(4, 8), (9, 11), (12, 15)}
    kinds = [draw_kind(np.random.default_rng(seed)) for seed in range(1000)]
    assert kinds.count("line") == pytest.approx(500, abs=60)
    assert kinds.count("lines") == pytest.approx(250, abs=50)


REPAIRING = InfillTokens(
    prefix=5, suffix=6, middle=7, newline=np.arange(64) == NEWLINE, repair=4, broken=lambda ids, rng: ids[::-1]
)


@given(st.lists(bodies, min_size=1, max_size=5), st.integers(0, 2**31), st.integers(48, 200))
def test_a_repair_row_shows_the_damaged_middle_behind_the_suffix(documents, seed, length):
    rows, prompt, drafts = infill_rows(documents, REPAIRING, 2, 1, length, "lines", True, np.random.default_rng(seed))
    assert rows
    for row, draft in zip(rows, drafts, strict=True):
        assert len(row) <= length
        assert row[prompt - 1] == 7
        hint = row[list(row).index(4) + 1 : prompt - 1]
        np.testing.assert_array_equal(hint, draft)
        middle = row[prompt:]
        if middle[-1] == 1 and len(middle) - 1 <= length // 4:
            np.testing.assert_array_equal(hint, middle[:-1][::-1])


def test_the_damaged_text_of_a_real_tokenizer_is_text_again():
    tokenizer = Tokenizer.from_folder(embedded_path())
    tokens = infill_tokens(tokenizer)
    assert tokens is not None
    assert tokens.repair == tokenizer.special_tokens["<|repair|>"]
    ids = np.array(tokenizer.encode("return [value for value in values]"))
    damaged = {tokenizer.decode(tokens.broken(ids, random.Random(seed)).tolist()) for seed in range(80)}
    assert len(damaged) > 20
    assert "return [value for value in values]" in damaged, "a tenth is right, to learn when to change nothing"


def test_infill_batches_appear_with_their_share_and_are_reproducible():
    documents = [np.arange(8, 8 + n) for n in range(10, 50)]
    sizes = np.array([len(document) for document in documents])
    make = lambda: Batches(  # noqa: E731
        documents, sizes, Specials(2, 1, 0), tokens=100, length=64, canvas=8, prompt_share=0.5, seed=4, infill=TOKENS
    )
    one, two = make(), make()
    infilled = 0
    for step in range(200):
        batch, again = one.batch(step, Mix(infill=0.5)), two.batch(step, Mix(infill=0.5))
        np.testing.assert_array_equal(batch.ids, again.ids)
        infilled += int(batch.ids[0, 1] == 5)
        assert (batch.ids.shape[1] - batch.prompt) % 8 == 0
    assert 60 < infilled < 140
    assert not any(one.batch(step).ids[0, 1] == 5 for step in range(50))


def test_the_batches_of_repair_rows_bring_drafts_with_an_end_and_pads():
    documents = [np.tile([20, 21, 22, NEWLINE, 23, 24, NEWLINE], n) for n in range(2, 9)]
    batches = Batches(
        documents, np.array([len(document) for document in documents]), Specials(2, 1, 0), tokens=100, length=64,
        canvas=8, prompt_share=0.5, seed=4, infill=REPAIRING,
    )  # fmt: skip
    seen = 0
    for step in range(40):
        batch = batches.batch(step, Mix(infill=1.0, repair=1.0))
        if batch.drafts is None:  # a span's hole is not repaired
            assert 4 not in batch.ids
            continue
        seen += 1
        assert batch.drafts.shape == (len(batch.ids), batch.ids.shape[1] - batch.prompt)
        for row, draft in zip(batch.ids, batch.drafts, strict=True):
            hint = row[list(row).index(4) + 1 : batch.prompt - 1]
            wanted = [*hint, 1, *[0] * len(draft)][: len(draft)]
            assert draft.tolist() == wanted
    assert seen > 20
    assert all(batches.batch(step, Mix(infill=1.0)).drafts is None for step in range(10))


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


def test_short_middles_are_noised_again_until_they_cost_as_much_as_their_prompt():
    body = np.array([20, 21, NEWLINE, 22, 23, NEWLINE] * 10)
    batches = Batches(
        [body] * 8, np.full(8, 60), Specials(2, 1, 0), tokens=100, length=80, canvas=8, prompt_share=0.5, seed=4,
        infill=TOKENS,
    )  # fmt: skip
    drawn = [batches.batch(step, Mix(infill=1.0, copies=6)) for step in range(40)]
    for batch in drawn:
        tiles = batch.ids.shape[1] - batch.prompt
        assert 1 <= batch.copies <= 6
        assert batch.copies == 1 or batch.copies * tiles <= batch.prompt
    assert max(batch.copies for batch in drawn) >= 4
    assert all(batches.batch(step, Mix(infill=1.0)).copies == 1 for step in range(10))


def test_canvases_may_begin_where_a_docstring_ends():
    tokenizer = Tokenizer.from_folder(embedded_path())
    head = 'def mean(values):\n    """The mean."""'
    ids = np.array(tokenizer.encode(head + "\n    return sum(values) / len(values)\n"))
    batches = Batches(
        [ids] * 4, np.full(4, len(ids)), Specials(2, 1, 0), tokens=100, length=80, canvas=8, prompt_share=0.5, seed=4,
        docstring_end=docstring_finder(tokenizer),
    )  # fmt: skip
    for step in range(10):
        batch = batches.batch(step, Mix(body=1.0))
        assert tokenizer.decode(batch.ids[0, : batch.prompt].tolist()) == head

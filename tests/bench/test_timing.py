"""Medians, quartiles, turns, and what counts as output."""

from __future__ import annotations

import pytest
from tests.tiny import prompt, tiny_model

from scumble import LLM, GenerationConfig
from scumble.bench.events import fixed_config, step_config, valid_tokens, watch
from scumble.bench.timing import figure, interleave


def test_figures() -> None:
    one = figure([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (one.median, one.low, one.high, one.spread, one.count) == (3, 2, 4, 2, 5)
    assert figure([1.0, 2.0]).median == 1.5
    assert figure([7.0]).spread == 0
    rate = one.per(12)
    assert (rate.median, rate.low, rate.high) == (4, 3, 6)
    assert one.scaled(1000).high == 4000
    with pytest.raises(ValueError, match="at least one"):
        figure([])


def test_compared_things_take_turns() -> None:
    calls: list[str] = []

    def action(name: str):
        return lambda: calls.append(name) or len(calls)

    results = interleave({"a": action("a"), "b": action("b")}, repeats=3, warmup=1)
    assert "".join(calls) == "ab" + "ababab"
    assert results == {"a": [3, 5, 7], "b": [4, 6, 8]}  # the warm-up is not among them


def test_nothing_behind_the_end_counts() -> None:
    assert valid_tokens([5, 6, 1, 7, 1, 8], {1}) == 3
    assert valid_tokens([5, 6, 7], {1}) == 3
    assert valid_tokens([1], (1, 2)) == 1
    assert valid_tokens([5, 6, 1, 7], ()) == 4
    assert valid_tokens([5, 6, 1, 7], {1}, limit=2) == 2
    assert valid_tokens([], {1}) == 0


def test_a_watched_run_counts_what_happened() -> None:
    llm = LLM(tiny_model())
    ticks = iter(range(10_000))
    run = watch(llm, prompt(5), fixed_config(3, 20, 0), lambda: float(next(ticks)))
    assert run.passes == (3, 3, 3)  # canvases of 8, 8 and 4 of 8 tokens
    assert len(run.ids) == run.valid == 20
    # request 0; drafts at 1 2 3, commit 4, drafts 5 6 7, commit 8, drafts 9 10 11, commit 12, end 13
    assert (run.first_draft, run.first_text, run.seconds) == (1, 4, 13)
    assert run.between == (1,) * 6  # never from one canvas to the next
    assert run.steps == (4, 4)


def test_a_run_that_ends_early_counts_its_valid_tokens_only() -> None:
    llm = LLM(tiny_model(eos_token_ids=tuple(range(1, 90))))  # almost every id ends the text
    config = GenerationConfig(max_new_tokens=64, max_denoising_steps=2)
    run = watch(llm, prompt(5), config, lambda: 0.0)
    assert run.valid == len(run.ids) <= 8
    assert run.ids[-1] in llm.model.config.eos_token_ids
    assert watch(llm, prompt(5), fixed_config(2, 16, 0), lambda: 0.0).valid == 16  # told to ignore the end


def test_the_autoregressive_run() -> None:
    run = watch(LLM(tiny_model()), prompt(5), step_config(6, 0), lambda: 0.0)
    assert (run.valid, run.first_draft, run.between) == (6, None, ())
    assert len(run.steps) == 5

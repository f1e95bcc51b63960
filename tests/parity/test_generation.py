"""Whole generations against `transformers`, pass by pass, under shared noise.

Both programs draw their random numbers from the same `RecordedNoise`. Every id has to be equal, always: the runs are
chosen such that no decision lies within rounding of another one (`decisive_run`). The only thing left out of the
comparison is a proposal that was not accepted and whose draw lies within rounding of its neighbour; it is thrown away.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from oracle import BORDER, Oracle, OracleRun, RecordedNoise, Settings, Shape, decisive_run, random_shape
from scumble import GenerationConfig
from scumble.events import Generation

from .conftest import Pair, PairMaker

PROMPT = [5, 17, 40, 3, 77, 8, 21, 60, 33, 12, 9]
LENGTH = Shape().canvas_length

PLAIN = Settings(max_new_tokens=3 * LENGTH, ignore_eos=True)
"""Close to the release's settings. Random models are never sure enough to stop early under them."""

EARLY = replace(PLAIN, max_denoising_steps=10, entropy_bound=2.0, confidence_threshold=0.3)
"""Accepts freely and asks for little confidence, so that canvases of a sharp random model stop before the last pass."""


ENTROPY_TOLERANCE = 1e-3
"""Nats. Logits that differ by `BORDER` = 1e-4 give entropies that differ by about 1e-4 / T, T ≥ 0.1."""


@pytest.fixture
def sharp(pair: PairMaker) -> Pair:
    return pair(Shape(), 1, sharpness=1.5)


def assert_same_run(generation: Generation, events: Sequence, run: OracleRun) -> None:
    """Compare a traced generation with the oracle's record of it, event by event."""
    for event, record in zip(events, run.passes, strict=False):
        where = f"canvas {record.canvas_index}, pass {record.pass_index}"
        assert (event.canvas_index, event.pass_index) == (record.canvas_index, record.pass_index), where
        assert event.temperature == pytest.approx(record.temperature, rel=1e-6), where
        assert event.canvas_in.tolist() == record.canvas_in.tolist(), where
        torch.testing.assert_close(event.entropy.float(), record.entropy, rtol=0, atol=ENTROPY_TOLERANCE, msg=where)
        assert event.argmax.tolist() == record.argmax.tolist(), where
        assert event.accepted.tolist() == record.accepted.tolist(), where
        decided = record.accepted | (record.draw_margins > BORDER)
        assert event.proposal[decided].tolist() == record.proposal[decided].tolist(), where
        assert event.canvas_out.tolist() == record.canvas_out.tolist(), where
        assert event.stopped == record.stopped, where
    assert len(events) == len(run.passes)
    assert list(generation.passes) == run.passes_per_canvas
    assert list(generation.token_ids) == run.token_ids
    assert generation.finish_reason == run.finish_reason


def assert_same_generation(
    both: Pair, settings: Settings, prompt: Sequence[int] = PROMPT, draft: Sequence[int] | None = None
) -> OracleRun:
    noise, run = decisive_run(both.oracle, prompt, settings, draft=draft)
    events: list = []
    generation = both.llm.generate_ids(
        prompt, GenerationConfig(**settings.as_dict()), noise=noise, trace=events.append, draft=draft
    )
    assert_same_run(generation, events, run)
    return run


# --- the loop -------------------------------------------------------------------------------------------------------


def test_one_canvas(sharp: Pair):
    run = assert_same_generation(sharp, replace(PLAIN, max_new_tokens=LENGTH))
    assert run.passes_per_canvas == [PLAIN.max_denoising_steps]
    assert (
        len({int(record.accepted.sum()) for record in run.passes}) > 2
    )  # a few positions accepted, now more, now less


def test_many_canvases(sharp: Pair):
    """Six canvases of 12 behind a prompt of 11, over a sliding window of 8."""
    run = assert_same_generation(sharp, replace(PLAIN, max_new_tokens=6 * LENGTH, max_denoising_steps=5))
    assert run.passes_per_canvas == [5] * 6


def test_stopping_early(sharp: Pair):
    run = assert_same_generation(sharp, EARLY)
    assert min(run.passes_per_canvas) < EARLY.max_denoising_steps
    assert len(set(run.passes_per_canvas)) > 1


def test_never_stopping(sharp: Pair):
    run = assert_same_generation(sharp, replace(EARLY, confidence_threshold=1e-9))
    assert run.passes_per_canvas == [EARLY.max_denoising_steps] * 3


@pytest.mark.parametrize("threshold", [0, 1, 2, 3])
def test_stability_threshold(sharp: Pair, threshold: int):
    """0 stops at the first confident pass; n asks for the argmax of the last n passes, so for at least n + 1 passes.
    The argmax history starts anew with every canvas."""
    run = assert_same_generation(
        sharp, replace(EARLY, stability_threshold=threshold, confidence_threshold=5.0, max_denoising_steps=12)
    )
    assert min(run.passes_per_canvas) >= threshold + 1
    if threshold == 0:
        assert run.passes_per_canvas == [1, 1, 1]
    else:
        assert any(record.stopped for record in run.passes)


@pytest.mark.parametrize("bound", [0.005, 0.03, 0.5, 3.0, 1000.0])
def test_entropy_bound(sharp: Pair, bound: float):
    """From one accepted position a pass to all of them."""
    run = assert_same_generation(sharp, replace(PLAIN, entropy_bound=bound))
    accepted = [int(record.accepted.sum()) for record in run.passes]
    if bound == 0.005:
        assert min(accepted) == 1
    if bound == 1000.0:
        assert accepted == [LENGTH] * len(run.passes)


@pytest.mark.parametrize(("t_min", "t_max"), [(0.4, 0.8), (0.1, 0.3), (0.9, 2.0), (0.3, 0.300001)])
def test_temperature_schedule(sharp: Pair, t_min: float, t_max: float):
    run = assert_same_generation(sharp, replace(PLAIN, t_min=t_min, t_max=t_max))
    assert run.passes[0].temperature == t_max  # the first pass has t_max, the last one is a step above t_min
    assert run.passes[-1].temperature > t_min


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_number_of_passes(sharp: Pair, steps: int):
    """With one pass there is no self-conditioning at all and the canvas is committed as it is first seen."""
    assert_same_generation(sharp, replace(PLAIN, max_denoising_steps=steps))


@pytest.mark.parametrize("prompt_length", [1, 6, 7, 8, 9, 10, 30])
def test_prompt_around_the_sliding_window(sharp: Pair, prompt_length: int):
    prompt = [(7 * i + 3) % 97 for i in range(prompt_length)]
    assert_same_generation(sharp, replace(PLAIN, max_new_tokens=2 * LENGTH, max_denoising_steps=5), prompt)


@pytest.mark.parametrize("length", [1, 5, 11])
def test_canvas_shorter_than_the_checkpoints(sharp: Pair, length: int):
    run = assert_same_generation(sharp, replace(EARLY, canvas_length=length, max_new_tokens=3 * length + 1))
    assert len(run.passes_per_canvas) == 4


def test_starting_from_a_draft(sharp: Pair):
    """A given canvas instead of noise; the following canvases start from noise again."""
    draft = [(5 * i + 1) % 97 for i in range(LENGTH)]
    run = assert_same_generation(sharp, EARLY, draft=draft)
    assert run.passes[0].canvas_in.tolist() == draft


# --- where an answer ends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, LENGTH - 1, LENGTH, LENGTH + 1, 2 * LENGTH + 5])
def test_max_new_tokens_cuts_exactly(sharp: Pair, count: int):
    """`transformers` rounds up to whole canvases; the kept tokens are the same, and no canvas is denoised in vain."""
    run = assert_same_generation(sharp, replace(EARLY, max_new_tokens=count))
    assert len(run.token_ids) == count
    assert run.finish_reason == "length"


def run_with_news_at(oracle: Oracle, position: int, settings: Settings) -> tuple[RecordedNoise, OracleRun]:
    """A decisive run whose token at this position occurs there for the first time, so that it can serve as the end."""
    for seed in range(0, 1000, 50):
        noise, run = decisive_run(oracle, PROMPT, settings, first_seed=seed)
        if run.token_ids[position] not in run.token_ids[:position]:
            return noise, run
    raise AssertionError(f"no run has a new token at {position}")


@pytest.mark.parametrize("position", [0, 4, LENGTH - 1, LENGTH, LENGTH + 7, 2 * LENGTH - 1])
@pytest.mark.parametrize("several", [False, True])
def test_end_of_sequence(pair: PairMaker, position: int, several: bool):
    """Whatever token a free run puts at the position is declared the end of sequence, alone or as one of several.
    The answer then ends with it, in the middle or at either end of a canvas, and no further canvas is begun."""
    settings = replace(EARLY, max_new_tokens=3 * LENGTH)
    noise, free = run_with_news_at(pair(Shape(), 1, sharpness=1.5).oracle, position, settings)
    end = free.token_ids[position]
    absent = next(token for token in range(97) if token not in free.token_ids)
    ending = pair(Shape(eos_token_id=(absent, end) if several else end), 1, sharpness=1.5)

    settings = replace(settings, ignore_eos=False)
    run = ending.oracle.generate(PROMPT, noise, settings)
    events: list = []
    generation = ending.llm.generate_ids(
        PROMPT, GenerationConfig(**settings.as_dict()), noise=noise, trace=events.append
    )
    assert_same_run(generation, events, run)
    assert list(generation.token_ids) == free.token_ids[: position + 1]
    assert generation.finish_reason == "stop"
    assert len(generation.passes) == position // LENGTH + 1


@pytest.mark.parametrize(("room", "reason"), [(0, "length"), (1, "stop"), (2, "stop")])
def test_end_of_sequence_at_the_limit(pair: PairMaker, room: int, reason: str):
    """The end lies just behind, exactly at, or just before the last token that max_new_tokens allows."""
    position = LENGTH + 3
    noise, free = run_with_news_at(pair(Shape(), 1, sharpness=1.5).oracle, position, replace(EARLY, max_new_tokens=30))
    ending = pair(Shape(eos_token_id=free.token_ids[position]), 1, sharpness=1.5)
    settings = replace(EARLY, ignore_eos=False, max_new_tokens=position + room)
    run = ending.oracle.generate(PROMPT, noise, settings)
    events: list = []
    generation = ending.llm.generate_ids(
        PROMPT, GenerationConfig(**settings.as_dict()), noise=noise, trace=events.append
    )
    assert_same_run(generation, events, run)
    assert generation.finish_reason == reason
    assert len(generation.token_ids) == position + min(room, 1)


def test_end_of_sequence_in_the_prompt_does_not_end(pair: PairMaker):
    both = pair(Shape(eos_token_id=PROMPT[3]), 1, sharpness=1.5)
    assert_same_generation(both, replace(EARLY, ignore_eos=False, max_new_tokens=LENGTH + 3))


# --- batches --------------------------------------------------------------------------------------------------------

PROMPTS = [PROMPT, [50], [(11 * i + 2) % 97 for i in range(29)], [7, 7, 7, 7, 7, 7, 7]]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_batch_of_unequal_prompts(sharp: Pair, order: list[int]):
    """Rows of unequal prompts, that stop after unequal numbers of passes: each is its own run of the oracle alone."""
    alone = [decisive_run(sharp.oracle, prompt, EARLY, first_seed=60 * row) for row, prompt in enumerate(PROMPTS)]
    events: dict[int, list] = defaultdict(list)
    generations = sharp.llm.generate_ids(
        [PROMPTS[row] for row in order],
        GenerationConfig(**EARLY.as_dict()),
        noise=[alone[row][0] for row in order],
        trace=lambda event: events[event.row].append(event),
    )
    for place, row in enumerate(order):
        assert_same_run(generations[place], events[place], alone[row][1])
    assert len({tuple(generation.passes) for generation in generations}) > 1


def test_batch_where_one_row_ends_first(pair: PairMaker):
    """A row that meets its end of sequence leaves; the others go on undisturbed."""
    free = pair(Shape(), 1, sharpness=1.5)
    noise, run = run_with_news_at(free.oracle, 5, EARLY)
    ending = pair(Shape(eos_token_id=run.token_ids[5]), 1, sharpness=1.5)
    settings = replace(EARLY, ignore_eos=False)
    alone = [(noise, ending.oracle.generate(PROMPT, noise, settings))]
    alone += [decisive_run(ending.oracle, prompt, settings, first_seed=60) for prompt in PROMPTS[1:3]]
    events: dict[int, list] = defaultdict(list)
    generations = ending.llm.generate_ids(
        [PROMPT, *PROMPTS[1:3]],
        GenerationConfig(**settings.as_dict()),
        noise=[noise for noise, _ in alone],
        trace=lambda event: events[event.row].append(event),
    )
    for row, (_, expected) in enumerate(alone):
        assert_same_run(generations[row], events[row], expected)
    assert len(generations[0].passes) < max(len(generation.passes) for generation in generations[1:])


# --- other models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("settings", [PLAIN, EARLY], ids=["plain", "early"])
def test_random_configurations(pair: PairMaker, seed: int, settings: Settings):
    shape = random_shape(seed)
    settings = replace(settings, max_new_tokens=2 * shape.canvas_length + seed)
    assert_same_generation(pair(shape, seed, sharpness=1.5), settings, [token % shape.vocab_size for token in PROMPT])


def test_vocabulary_of_several_tiles(pair: PairMaker):
    """The engine takes the vocabulary in tiles of a few thousand ids: draws, argmax, entropies and soft embeddings have
    to come out the same across their borders."""
    vocab = 9001
    both = pair(Shape(vocab_size=vocab), 1, sharpness=2.0)
    for settings in (PLAIN, EARLY):
        settings = replace(settings, max_new_tokens=LENGTH, max_denoising_steps=5)
        run = assert_same_generation(both, settings, [800 * token % vocab for token in PROMPT])
        drawn = torch.cat([record.proposal for record in run.passes])
        assert set((drawn // 4096).tolist()) == {0, 1, 2}


def test_prompt_of_several_chunks(pair: PairMaker):
    """The engine encodes long prompts in chunks of some hundred tokens; windows and positions run on across them."""
    both = pair(Shape(layers="sfsf", sliding_window=100), 1, sharpness=1.5)
    prompt = [(31 * i + i // 7) % 97 for i in range(1300)]
    assert_same_generation(both, replace(PLAIN, max_new_tokens=LENGTH + 3, max_denoising_steps=4), prompt)


def test_tied_and_unused_experts(pair: PairMaker):
    shape = Shape(num_experts=8, top_k_experts=3)
    assert_same_generation(pair(shape, tied_experts=True, sharpness=1.5), EARLY)
    assert_same_generation(pair(replace(shape, top_k_experts=2), unused_experts=4, sharpness=1.5), EARLY)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 130))
@pytest.mark.parametrize("settings", [PLAIN, EARLY], ids=["plain", "early"])
def test_many_random_configurations(pair: PairMaker, seed: int, settings: Settings):
    shape = random_shape(seed)
    settings = replace(settings, max_new_tokens=4 * shape.canvas_length + seed % 7, stability_threshold=seed % 3)
    prompt = [(13 * i + seed) % shape.vocab_size for i in range(1 + seed % 40)]
    assert_same_generation(pair(shape, seed, sharpness=1.5), settings, prompt)

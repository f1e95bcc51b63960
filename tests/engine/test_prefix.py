"""Requests that begin alike: the beginning is encoded once, and nobody's tokens change by it."""

import pytest
import torch

from scumble import GenerationConfig
from scumble.decode import Answer, TokensCommitted, make_request
from scumble.engine import Engine, Failed
from scumble.engine.prefix import SHORT, restore
from scumble.engine.scheduler import CHUNK
from tiny import prompt, tiny_model

from .ways import ClaimsInvariance

FREE = {"ignore_eos": True, "max_denoising_steps": 3, "max_new_tokens": 10}


def counted(engine, prompts, **settings):
    """Answer requests that come all at once -> their ids, and how many tokens of prompts were encoded for them."""
    before, answers = engine.stats.prefilled, [[] for _ in prompts]
    for ids, events in zip(prompts, answers, strict=True):
        config = GenerationConfig(**{**FREE, **settings})
        engine.add(make_request(ids, config, {}, engine.model.config), events.append)
    while engine.has_work:
        engine.step()
    assert not [event for events in answers for event in events if isinstance(event, Failed)]
    ids = [[t for event in events if isinstance(event, TokensCommitted) for t in event.ids] for events in answers]
    commits = sum(len(row) for row in ids) if settings.get("decoder") == "autoregressive" else 0
    assert all(isinstance(events[-1], Answer) for events in answers)
    return ids, engine.stats.prefilled - before - commits


def model_in(form):
    model = tiny_model()
    model.cache_format = form
    return model


@pytest.mark.parametrize("form", [None, "int8", "fp8"])
@pytest.mark.parametrize("decoder", ["diffusion", "autoregressive"])
def test_whole_chunks_are_shared_bit_for_bit(decoder, form):
    """Where products depend on how a prompt is cut, blocks are whole chunks: the same tokens, and the same bits."""
    start = prompt(2 * CHUNK + 100)
    prompts = [[*start, *prompt(5, seed)] for seed in range(4)]
    alone = [counted(Engine(model_in(form)), [ids], decoder=decoder)[0][0] for ids in prompts]
    engine = Engine(model_in(form))
    together, _ = counted(engine, prompts, decoder=decoder)
    assert together == alone
    assert engine.stats.reused == 3 * 2 * CHUNK
    assert counted(engine, prompts[:1], decoder=decoder)[0] == alone[:1]
    assert engine.stats.reused == 4 * 2 * CHUNK


@pytest.mark.parametrize("decoder", ["diffusion", "autoregressive"])
def test_an_answer_says_how_much_of_its_prompt_was_there(decoder):
    engine, found = Engine(tiny_model()), []
    for length in (CHUNK + 9, CHUNK + 30, 20):
        events = []
        config = GenerationConfig(**FREE, decoder=decoder)
        engine.add(make_request(prompt(length), config, {}, engine.model.config), events.append)
        while engine.has_work:
            engine.step()
        found.append(events[-1].cached_tokens)
    assert found == [0, CHUNK, 0]


def test_short_blocks_share_nearly_all_of_a_beginning():
    """200 requests with 2,000 tokens in common, all at once: hardly more work than for one of them."""
    model = tiny_model(sliding_window=24).use(ClaimsInvariance())
    start = prompt(2_000)
    prompts = [[*start, 5, 2 + row % 90] for row in range(200)]
    _, work = counted(Engine(model), prompts, max_new_tokens=4)
    own = 200 * (len(prompts[0]) - len(start) // SHORT * SHORT)
    assert work - own <= 1.1 * len(start)


def test_an_earlier_turn_is_a_beginning():
    """What a conversation's next turn repeats of the one before, its answer included, is not encoded again."""
    engine = Engine(tiny_model(sliding_window=24).use(ClaimsInvariance()))
    first = prompt(300)
    (answer,), _ = counted(engine, [first], max_new_tokens=40)
    _, work = counted(engine, [[*first, *answer, *prompt(7, 3)]], max_new_tokens=1)
    assert work <= 7 + 8 + 2 * SHORT  # the last canvas was never encoded, nor is a block that is not full


def test_other_beginnings_are_not_mixed_up():
    engine = Engine(tiny_model())
    one, two = prompt(CHUNK + 9, 1), prompt(CHUNK + 9, 2)
    two[CHUNK:] = one[CHUNK:]
    counted(engine, [one])
    counted(engine, [two])
    assert engine.stats.reused == 0


def test_blocks_that_were_used_longest_ago_go_first_and_memory_is_bounded():
    engine = Engine(tiny_model())
    starts = [prompt(CHUNK + 3, seed) for seed in range(4)]
    counted(engine, starts[:1])
    engine.prefixes.room = 2 * engine.prefixes.nbytes + 10
    counted(engine, starts[1:2])
    counted(engine, starts[:1])
    counted(engine, starts[2:3])  # pushes out the second, not the first
    assert engine.prefixes.nbytes <= engine.prefixes.room
    reused = engine.stats.reused
    counted(engine, starts[:1])
    assert engine.stats.reused == reused + CHUNK
    counted(engine, starts[1:2])
    assert engine.stats.reused == reused + CHUNK


@pytest.mark.parametrize("form", [None, "int8"])
def test_restored_caches_hold_what_encoding_would_have_put_there(form):
    model = tiny_model(sliding_window=24)
    model.cache_format = form
    engine = Engine(model)
    start = prompt(CHUNK + 3)
    counted(engine, [start])
    whole, restored = model.new_cache(), model.new_cache()
    model.encode(torch.tensor(start[:CHUNK]), whole)
    restore(restored, [block.layers for block in engine.prefixes.blocks.values()])
    assert restored.length == whole.length == CHUNK
    for mine, theirs in zip(restored.layers, whole.layers, strict=True):
        kept = theirs.end - theirs.start
        for own, other in zip(mine.parts, theirs.parts, strict=True):
            assert torch.equal(own[:, mine.end - kept : mine.end], other[:, theirs.start : theirs.end])

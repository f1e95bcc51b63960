"""Memory for keys and values: never more than there is, whoever has to wait for it, and nobody's tokens change."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble import GenerationConfig
from scumble.checkpoint.memory import Available
from scumble.decode import Answer, PassDone, make_request
from scumble.decode.constraint import Forbidden
from scumble.engine import Engine, Failed, memory
from scumble.engine.memory import CHUNK, CacheSize
from tiny import prompt

from .ways import WAYS, ids, model_for

FREE = {"ignore_eos": True, "max_denoising_steps": 3}
SETTINGS = [
    {"max_new_tokens": 40, "entropy_bound": 3.0},
    {"max_new_tokens": 30, "decoder": "autoregressive"},
    {"max_new_tokens": 25, "canvas_length": 3, "temperature": 0},
    {"max_new_tokens": 24, "best_of": 3, "entropy_bound": 3.0},
    {"max_new_tokens": 20, "decoder": "autoregressive", "logprobs": 1, "temperature": 0},
    {"max_new_tokens": 16, "best_of": 2, "revisions": 2, "entropy_bound": 3.0},
]
LENGTHS = [3, 17, 30, CHUNK - 4, CHUNK + 30]


@pytest.fixture(scope="module", params=WAYS)
def model(request):
    return model_for(request.param, sliding_window=24)


def only_where_rows_can_be_preempted(model):
    if not model.ops.batch_invariant:
        pytest.skip("a text that is encoded again, in other pieces, would not have the same bits")


def request_of(model, number):
    """Long prompts among them begin alike."""
    config = GenerationConfig(seed=number, **FREE, **SETTINGS[number % len(SETTINGS)])
    length = LENGTHS[number % len(LENGTHS)]
    ids = [*prompt(length, 0 if length > 30 else number), 2 + number]
    constraint = Forbidden(frozenset({5, 6})) if number % 7 == 3 else None
    return make_request(ids, config, {}, model.config, constraint=constraint)


def size_for(model, tokens, canvas_tokens=1):
    """Of a row that is alone: its cache, its soft embeddings, and room to read the cache in."""
    size = CacheSize(model.config, model.dtype, model.cache_format)
    return size(tokens, canvas_tokens) + size.room(tokens)


def need(model, number):
    """The most that a request can come to need."""
    request = request_of(model, number)
    longest = len(request.prompt) + request.max_new_tokens + 2 * model.config.canvas_length
    return size_for(model, longest, model.config.canvas_length * len(request.noises))


def check_memory(engine):
    caches = [row.cache for row in engine.scheduler.running if row.cache is not None]
    assert sum(cache.nbytes() for cache in caches) + engine.prefixes.nbytes <= engine.memory
    for row in engine.scheduler.running:
        assert row.cache.nbytes() <= row.reserved


@pytest.fixture(scope="module")
def alone(model):
    found = {}

    def of(number):
        if number not in found:
            engine, events = Engine(model), []
            engine.add(request_of(model, number), events.append)
            while engine.has_work:
                engine.step()
                check_memory(engine)
            assert engine.stats.preempted == 0
            found[number] = ids(events)
        return found[number]

    return of


@given(st.integers(0, 2**32))
@settings(deadline=None, max_examples=12)
def test_whatever_memory_there_is_tokens_are_the_same_and_all_come_to_an_end(model, alone, seed):
    dice = random.Random(seed)
    numbers = [dice.randrange(30) for _ in range(dice.randrange(2, 9))]
    if dice.random() < 0.6:  # answers that are longer than their prompts: what is needed grows after the start
        numbers = [number for number in numbers if LENGTHS[number % len(LENGTHS)] <= 30] or [0]
    engine = Engine(model)
    engine.memory = int(max(need(model, number) for number in numbers) * dice.uniform(1, 1.8))
    found, steps = [], 0
    for number in numbers:
        events = []
        found.append((number, events))
        engine.add(request_of(model, number), events.append, drafts=dice.random() < 0.5)
        for _ in range(dice.randrange(3)):
            engine.step()
            check_memory(engine)
    while engine.has_work:
        engine.step()
        check_memory(engine)
        steps += 1
        assert steps < 20_000, "somebody waits for ever"
    for number, events in found:
        assert isinstance(events[-1], Answer)
        assert ids(events) == alone(number)
    assert model.ops.batch_invariant or engine.stats.preempted == 0, "it would go on with other tokens"
    PREEMPTED.append(engine.stats.preempted)


def test_that_property_was_tried():
    assert sum(map(bool, PREEMPTED)) >= 4, PREEMPTED


PREEMPTED: list[int] = []


def test_the_youngest_makes_room_and_goes_on_where_it_was(model, alone):
    """Preempted in the middle of a canvas: no pass is told twice, and none is missing."""
    only_where_rows_can_be_preempted(model)
    engine, events = Engine(model), [[], []]
    numbers = [0, 3]
    for number, own in zip(numbers, events, strict=True):
        engine.add(request_of(model, number), own.append, drafts=True)
    for _ in range(6):
        engine.step()
    old, young = engine.scheduler.running
    engine.memory = old.reserved + young.reserved - 1
    engine.step()
    assert engine.scheduler.running == [old]
    assert list(engine.scheduler.waiting) == [young]
    assert young.cache is None
    told = len(events[1])
    while not old.is_over:
        engine.step()
        check_memory(engine)
    assert told <= len(events[1])
    engine.memory *= 4
    while engine.has_work:
        engine.step()
    assert engine.stats.preempted >= 1
    for number, own in zip(numbers, events, strict=True):
        assert ids(own) == alone(number)
        passes = [(one.canvas_index, one.pass_index, one.candidate) for one in own if isinstance(one, PassDone)]
        assert len(passes) == len(set(passes))
        assert passes == sorted(passes)


def test_many_start_at_once_although_not_all_could_come_to_their_longest_end(model):
    """Admission goes by what is needed now: a long `max_new_tokens` alone keeps nobody waiting."""
    only_where_rows_can_be_preempted(model)
    engine = Engine(model)
    config = GenerationConfig(max_new_tokens=3_000, max_denoising_steps=1, ignore_eos=True)
    engine.memory = size_for(model, 3_100, 100)
    rows = [engine.add(make_request(prompt(4, n), config, {}, model.config), lambda event: None) for n in range(8)]
    engine.step()
    assert len(engine.scheduler.running) == 8
    for row in rows:
        engine.cancel(row)
    engine.step()
    assert engine.stats.cache_bytes == 0


def test_cached_beginnings_make_room_before_anybody_is_preempted(model):
    engine, events = Engine(model), []
    engine.add(request_of(model, 4), events.append)  # a long prompt
    while engine.has_work:
        engine.step()
    assert engine.prefixes.nbytes > 0
    engine.memory = need(model, 2) + 10
    engine.add(request_of(model, 2), events.append)
    while engine.has_work:
        engine.step()
        check_memory(engine)
    assert engine.stats.preempted == 0
    assert isinstance(events[-1], Answer)


def test_a_prompt_that_does_not_fit_alone_ends_with_what_it_needs_and_others_go_on(model):
    engine, events, others = Engine(model), [], []
    engine.memory = need(model, 4) // 4
    engine.add(request_of(model, 4), events.append)
    engine.add(request_of(model, 0), others.append)
    while engine.has_work:
        engine.step()
        check_memory(engine)
    assert isinstance(events[-1], Failed)
    assert "tokens, the engine has" in str(events[-1].error)
    assert isinstance(others[-1], Answer)


def test_an_answer_that_comes_to_need_more_than_there_is_ends_there(model, alone):
    engine, events = Engine(model), []
    request = request_of(model, 1)
    engine.memory = size_for(model, len(request.prompt) + 12)
    engine.add(request, events.append)
    while engine.has_work:
        engine.step()
        check_memory(engine)
    assert isinstance(events[-1], Failed)
    assert "shorten the prompt or max_new_tokens" in str(events[-1].error)
    assert 0 < len(ids(events)) < len(alone(1))
    assert ids(events) == alone(1)[: len(ids(events))]


def test_a_preempted_request_can_be_cancelled(model):
    only_where_rows_can_be_preempted(model)
    engine = Engine(model)
    rows = [engine.add(request_of(model, number), lambda event: None) for number in (0, 1)]
    for _ in range(4):
        engine.step()
    engine.memory = sum(row.reserved for row in rows) - 1
    engine.step()
    engine.cancel(rows[1])
    engine.memory *= 4
    while engine.has_work:
        engine.step()
    assert (engine.stats.finished, engine.stats.cancelled, engine.stats.preempted) == (1, 1, 1)
    assert not engine.runner.denoiser.canvases


def test_caches_take_half_of_what_this_process_may_still_take(monkeypatch):
    """In a container that is the container's limit, not the machine's memory."""
    monkeypatch.setattr(memory, "available", lambda device: Available(10**9, "left by a limit"))
    assert memory.cache_memory(torch.device("cpu")) == 5 * 10**8
    monkeypatch.setattr(memory, "available", lambda device: None)
    monkeypatch.delattr(memory.os, "sysconf")
    assert memory.cache_memory(torch.device("cpu")) == memory.UNKNOWN

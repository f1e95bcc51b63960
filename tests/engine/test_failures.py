"""An error ends the request that it comes from. The others, in the same forward, go on with the very same tokens."""

import asyncio
import random
from dataclasses import replace
from functools import partial

import pytest
import torch

from scumble import GenerationConfig, RequestsFailed, ScumbleError
from scumble.decode import Answer, Constraint, make_request
from scumble.decode.constraint import Restriction
from scumble.diffusion import EntropyBound
from scumble.engine import Engine, Failed
from scumble.events import Finished
from scumble.llm import LLM
from scumble.model import Segment
from tiny import prompt, tiny_model

from .ways import WAYS, ids, model_for

FREE = {"ignore_eos": True, "max_denoising_steps": 3}
SETTINGS = [
    {"max_new_tokens": 12, "entropy_bound": 3.0},
    {"max_new_tokens": 5, "decoder": "autoregressive"},
    {"max_new_tokens": 9, "canvas_length": 3, "temperature": 0},
    {"max_new_tokens": 8, "best_of": 2},
    {"max_new_tokens": 4, "decoder": "autoregressive", "logprobs": 1, "temperature": 0},
]


@pytest.fixture(scope="module", params=WAYS)
def model(request):
    return model_for(request.param, sliding_window=12)


def request_of(model, number, **inputs):
    config = GenerationConfig(seed=number, **FREE, **SETTINGS[number % len(SETTINGS)])
    return make_request(prompt(3 + number % 17, number), config, {}, model.config, **inputs)


def run(engine):
    for _ in range(10_000):
        if not engine.has_work:
            return
        engine.step()
    raise AssertionError("the engine does not come to an end")


@pytest.fixture(scope="module")
def alone(model):
    """Tokens of every kind of request, alone."""
    found = {}

    def of(number):
        if number not in found:
            engine, events = Engine(model), []
            engine.add(request_of(model, number), events.append)
            run(engine)
            found[number] = ids(events)
        return found[number]

    return of


# --- ways to go wrong -------------------------------------------------------------------------------------------------


class Unlucky(EntropyBound):
    """A rule of a caller's own, with a mistake in it."""

    def accept(self, canvas, proposal):
        raise ZeroDivisionError("an unlucky rule")


class Misfit(Constraint):
    """Its mask is for another vocabulary."""

    def restrict(self, length, room, vocab):
        return Restriction(allowed={0: torch.ones(vocab + 1, dtype=torch.bool)})


def break_cache(engine, row):
    layer = row.cache.layers[-1]
    layer.keys = layer.keys[:, :, :3]


def break_soft_embedding(engine, row):
    for slot in engine.runner.denoiser.slots([row]):
        slot.soft = torch.zeros(1, 5)


def break_text(engine, row):
    row.answer += [10**6, 10**6]


def run_out_of_memory(engine, row):
    def reserve(tokens):
        raise MemoryError(f"no room for {tokens} tokens")

    row.cache.reserve = reserve


def break_in_the_last_layer(engine, row):
    """The forward fails when the caches of all rows have been written to in the other layers."""
    layer = row.cache.layers[-1]

    def fail(*_):
        raise RuntimeError("a broken layer")

    layer.append = layer.beside = fail


IN_FLIGHT = [break_cache, break_soft_embedding, break_text, run_out_of_memory, break_in_the_last_layer]


@pytest.mark.parametrize("poison", IN_FLIGHT)
def test_a_poisoned_row_ends_alone(model, alone, poison):
    engine, found = Engine(model), [[] for _ in range(10)]
    rows = [engine.add(request_of(model, number), events.append) for number, events in enumerate(found)]
    engine.step()
    engine.step()
    poison(engine, rows[0])
    run(engine)
    assert (engine.stats.failed, engine.stats.finished) == (1, 9)
    assert isinstance(found[0][-1], Failed)
    assert [ids(events) for events in found[1:]] == [alone(number) for number in range(1, 10)]


def test_a_pass_without_memory_says_what_it_was_for(model, monkeypatch):
    def full(segments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore for experts")

    engine, events = Engine(model), []
    engine.add(request_of(model, 0), events.append)
    monkeypatch.setattr(engine.runner.model, "forward", full)
    engine.runner.replays.is_off = True
    run(engine)
    assert isinstance(events[-1], Failed)
    assert isinstance(events[-1].error, ScumbleError)
    said = str(events[-1].error)  # 3 tokens of the prompt, 8 of a canvas
    assert "a pass of this request of 11 tokens: CUDA out of memory. Tried to allocate 2.00 GiB.; shorten" in said


@pytest.mark.parametrize("wrong", ["rule", "mask"])
def test_a_request_whose_own_rules_fail_ends_alone(model, alone, wrong):
    engine, found = Engine(model), [[] for _ in range(10)]
    for number, events in enumerate(found):
        request = request_of(model, number, **({"constraint": Misfit()} if number == 5 and wrong == "mask" else {}))
        if number == 5 and wrong == "rule":
            request = replace(request, sampler=Unlucky(0.1))
        engine.add(request, events.append)
    run(engine)
    assert isinstance(found.pop(5)[-1], Failed)
    assert [ids(events) for events in found] == [alone(number) for number in (*range(5), *range(6, 10))]


def test_hundreds_of_requests_with_cancels_and_poison(model, alone):
    """Requests come and go at random, some are cancelled, every tenth is poisoned: nobody else notices."""
    dice = random.Random(7)
    engine = Engine(model)
    found, running, poisoned = [], [], set()
    left = 300
    while left or engine.has_work:
        for _ in range(min(left, dice.randrange(12))):
            number, events = dice.randrange(40), []
            row = engine.add(request_of(model, number), events.append)
            found.append((number, events, row))
            running.append(row)
            left -= 1
        engine.step()
        running = [row for row in running if not row.is_over]
        if running and dice.random() < 0.3:
            engine.cancel(dice.choice(running))
        begun = [row for row in running if row.cache is not None]
        if begun and dice.random() < 0.3:
            row = dice.choice(begun)
            poisoned.add(row)
            dice.choice(IN_FLIGHT)(engine, row)
    for number, events, row in found:
        if row not in poisoned:
            assert ids(events) == alone(number)[: len(ids(events))]
            assert not [event for event in events if isinstance(event, Failed)]
            if events and isinstance(events[-1], Answer):
                assert ids(events) == alone(number)
    assert len(poisoned) > 10
    assert engine.stats.finished > 200


@torch.no_grad()
@pytest.mark.parametrize("context", [1, 11, 12, 13, 50])
def test_a_failed_forward_leaves_caches_as_they_were(model, context):
    """In the middle of a commit and of the next canvas's first pass, where a sliding layer moves its tail."""
    before, failed = model.new_cache(), model.new_cache()
    for cache in (before, failed):
        model.encode(torch.tensor(prompt(context)), cache)
    commit, canvas = torch.tensor(prompt(7, 1)), torch.tensor(prompt(8, 2))
    segments = [Segment(commit, failed, "encode", quiet=True), Segment(canvas, failed, "denoise")]
    for layer in failed.layers:
        original = layer.beside

        def fail(*_):
            raise MemoryError

        layer.beside = fail
        with pytest.raises(MemoryError):
            model(segments)
        layer.beside = original
        assert failed.length == context
    expected = model([replace(one, cache=before) for one in segments])
    assert torch.equal(model(segments), expected)
    assert torch.equal(model.encode(canvas, failed), model.encode(canvas, before))


def test_nobody_waits_for_ever_when_the_engine_itself_fails(monkeypatch):
    llm = LLM(tiny_model())
    request = llm.request(prompt(4), GenerationConfig(max_new_tokens=8, **FREE))

    async def ask():
        last = [event async for event in llm.astream_request(request)][-1]
        assert isinstance(last, Finished)
        return last.generation.token_ids

    expected = asyncio.run(ask())
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "share_memory", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            asyncio.run(asyncio.wait_for(ask(), 30))
    assert asyncio.run(ask()) == expected


# --- many prompts in one call -----------------------------------------------------------------------------------------


def failing_at(number, error):
    """A trace that breaks one request's cache after its first pass."""

    def patch(original, engine, request, deliver, drafts=False):
        row = original(engine, request, deliver, drafts)
        if request.prompt.shape[0] == number:
            row.deliver = deliver

            def advance(result):
                raise error

            row.advance = advance
        return row

    return patch


def test_answers_to_other_prompts_are_not_lost(monkeypatch):
    llm = LLM(tiny_model())
    prompts = [prompt(length, 1) for length in range(1, 6)]
    config = GenerationConfig(max_new_tokens=8, **FREE)
    expected = llm.generate_ids(prompts, config)
    original = Engine.add
    patch = failing_at(3, MemoryError("too long a prompt"))
    monkeypatch.setattr(Engine, "add", lambda *args, **options: patch(original, *args, **options))
    with pytest.raises(RequestsFailed, match=r"1 of 5 requests failed.*number 2: too long a prompt") as caught:
        llm.generate_ids(prompts, config)
    found = [one and one.token_ids for one in caught.value.generations]
    assert found == [None if row == 2 else one.token_ids for row, one in enumerate(expected)]
    assert list(caught.value.errors) == [2]
    assert isinstance(caught.value, ScumbleError)
    with pytest.raises(MemoryError, match="too long a prompt"):
        llm.generate_ids([prompts[2]], config)
    stream = partial(llm.stream_ids, prompts, config)
    with pytest.raises(MemoryError, match="too long a prompt"):
        list(stream())

"""Hundreds of mixed requests from threads and event loops at once, through the public face: some are given up, some
fail, and every other one gets the tokens that it gets alone."""

import asyncio
import random
import threading
import time

import pytest

from scumble import GenerationConfig, ScumbleError
from scumble.llm import LLM
from tiny import prompt

from .ways import model_for

FREE = {"ignore_eos": True, "max_denoising_steps": 3}
SETTINGS = [
    {"max_new_tokens": 12, "entropy_bound": 3.0},
    {"max_new_tokens": 6, "decoder": "autoregressive"},
    {"max_new_tokens": 9, "canvas_length": 3, "temperature": 0.0},
    {"max_new_tokens": 8, "best_of": 2},
    {"max_new_tokens": 5, "decoder": "autoregressive", "logprobs": 1, "temperature": 0.0},
]
KINDS = 20


class Poison:
    """Noise that breaks off in the middle of an answer."""

    def __init__(self, after):
        self.left = after

    def initial(self, canvas_index, length, vocab):
        return prompt(length, canvas_index)

    def uniform(self, canvas_index, pass_index, length):
        self.left -= 1
        if self.left < 0:
            raise ArithmeticError("no numbers are left")
        return [0.5] * length

    def renoise(self, canvas_index, pass_index, length, vocab):
        return prompt(length, pass_index)


def asked(number):
    settings = SETTINGS[number % len(SETTINGS)]
    return prompt(3 + number % 17, number), GenerationConfig(seed=number, **FREE, **settings)


@pytest.mark.parametrize("way", ["forwards of their own", "a shared forward"])
def test_nobody_notices_the_others(way):
    llm = LLM(model_for(way, sliding_window=12))
    alone = [llm.generate_ids(*asked(number)).token_ids for number in range(KINDS)]
    wrong, done = [], []

    def check(number, found):
        done.append(number)
        if found != alone[number][: len(found)]:
            wrong.append((number, found))

    def caller(seed):
        """Waits for answers, gives streams up, is poisoned."""
        dice = random.Random(seed)
        for _ in range(20):
            number, way = dice.randrange(KINDS), dice.random()
            ids, config = asked(number)
            if way < 0.4:
                check(number, llm.generate_ids(ids, config).token_ids)
            elif way < 0.7:
                stream, found = llm.stream_ids([ids], [config]), ()
                for event in stream:
                    found += getattr(event, "token_ids", ()) if type(event).__name__ == "Committed" else ()
                    if dice.random() < 0.3:
                        break
                stream.close()
                check(number, found)
            elif way < 0.85:
                noise = Poison(dice.randrange(3))
                with pytest.raises(ArithmeticError, match="no numbers are left"):
                    llm.generate_ids(
                        ids, GenerationConfig(max_new_tokens=9, temperature=0.5, max_denoising_steps=9), noise=noise
                    )
            else:
                with pytest.raises(ScumbleError, match="ids must lie in"):
                    llm.generate_ids([10**6], config)

    async def loop(seed):
        """Many at a time in one event loop; some are cancelled."""
        dice = random.Random(seed)

        async def one(number):
            request = llm.request(*asked(number))
            found = ()
            async for event in llm.astream_request(request, drafts=False):
                found += getattr(event, "token_ids", ()) if type(event).__name__ == "Committed" else ()
            check(number, found)

        tasks = [asyncio.create_task(one(dice.randrange(KINDS))) for _ in range(40)]
        for task in tasks:
            if dice.random() < 0.2:
                await asyncio.sleep(0.001)
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(one is None or isinstance(one, asyncio.CancelledError) for one in results)

    failures = []

    def run(call):
        try:
            call()
        except BaseException as error:
            failures.append(error)

    calls = [lambda seed=seed: caller(seed) for seed in range(4)] + [lambda: asyncio.run(loop(9))]
    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failures
    assert not wrong
    assert len(done) > 60
    for _ in range(500):  # what was given up last leaves with the engine's next step
        if (stats := llm.stats()).running == 0:
            break
        time.sleep(0.01)
    assert (stats.waiting, stats.running, stats.slots, stats.cache_bytes) == (0, 0, 0, 0)
    assert stats.failed > 3
    assert stats.cancelled > 3

"""Rows that share all products: with batch-invariant operations a row's tokens are what they are alone."""

import pytest
import torch

from scumble import GenerationConfig
from scumble.decode import Answer, TokensCommitted, make_request
from scumble.engine import Engine
from scumble.engine.scheduler import CHUNK
from scumble.ops import choose
from tiny import prompt, tiny_model

from .ways import ClaimsInvariance

FREE = {"ignore_eos": True, "max_denoising_steps": 4}
ROWS = [
    (prompt(3, 1), GenerationConfig(max_new_tokens=20, seed=1, **FREE)),
    (prompt(40, 2), GenerationConfig(max_new_tokens=7, seed=2, temperature=0, **FREE)),
    (prompt(6, 3), GenerationConfig(max_new_tokens=12, seed=3, decoder="autoregressive", ignore_eos=True)),
    (prompt(5, 4), GenerationConfig(max_new_tokens=9, seed=4, canvas_length=3, logprobs=2, **FREE)),
    (prompt(40, 2) + prompt(4, 5), GenerationConfig(max_new_tokens=17, seed=5, entropy_bound=3.0, **FREE)),
    (prompt(CHUNK + 50, 6), GenerationConfig(max_new_tokens=5, seed=6, decoder="autoregressive", temperature=0)),
    ([*prompt(CHUNK + 50, 6), 5], GenerationConfig(max_new_tokens=9, seed=7, best_of=2, revisions=1, **FREE)),
]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    """In bfloat16, by the operations that this machine's processor has; sizes that they serve."""
    model = tiny_model(dtype=torch.bfloat16, sliding_window=40)
    model.use(choose("cpu", torch.bfloat16, model.config).ops)
    if not model.ops.batch_invariant:
        pytest.skip("no batch-invariant operations on this machine")
    return model


def answered(engine, rows):
    answers = [[] for _ in rows]
    for (ids, config), events in zip(rows, answers, strict=True):
        engine.add(make_request(ids, config, {}, engine.model.config), events.append)
    while engine.has_work:
        engine.step()
    assert all(isinstance(events[-1], Answer) for events in answers)
    return [[t for event in events if isinstance(event, TokensCommitted) for t in event.ids] for events in answers]


def test_a_row_s_tokens_are_the_same_alone_in_a_batch_and_from_shared_beginnings(model):
    alone = [answered(Engine(model), [row])[0] for row in ROWS]
    engine = Engine(model)
    assert answered(engine, ROWS) == alone
    assert answered(engine, ROWS[::-1]) == alone[::-1], "the second time from what the first has left"
    assert engine.stats.reused > 2 * CHUNK


def test_rows_share_forwards(model, monkeypatch):
    forwards = []
    original = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, s: forwards.append(len(s)) or original(self, s))
    answered(Engine(model), [(prompt(4, n), GenerationConfig(max_new_tokens=8, seed=n, **FREE)) for n in range(8)])
    assert forwards == [8] * (1 + FREE["max_denoising_steps"])


def test_canvases_of_all_rows_are_conditioned_in_one_call(monkeypatch):
    calls = []
    model = tiny_model().use(ClaimsInvariance())
    original = model.self_conditioning.mix
    monkeypatch.setattr(model.self_conditioning, "mix", lambda *both: calls.append(len(both[0])) or original(*both))
    answered(Engine(model), [(prompt(4, n), GenerationConfig(max_new_tokens=8, seed=n, **FREE)) for n in range(8)])
    assert calls == [8 * 8] * FREE["max_denoising_steps"]

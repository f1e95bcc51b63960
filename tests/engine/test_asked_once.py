"""A pass that is computed again, because something of another request failed in it, changes nothing for the others.
What a request brings along (noise, a law) may keep state, so it is asked once a pass all the same."""

from dataclasses import replace

import pytest
import torch

from scumble import GenerationConfig
from scumble.decode import Answer, Constraint, make_request
from scumble.decode.constraint import Restriction
from scumble.diffusion import EntropyBound
from scumble.engine import Engine, Failed
from tiny import prompt

from .ways import ids, model_for

FREE = {"ignore_eos": True, "max_denoising_steps": 4, "max_new_tokens": 12}


class Stream:
    """Noise that comes from a stream: whoever asks twice gets something else the second time."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(3)

    def initial(self, canvas_index, length, vocab):
        return torch.randint(vocab, (length,), generator=self.generator)

    def uniform(self, canvas_index, pass_index, length):
        return torch.rand(length, generator=self.generator, dtype=torch.float64)

    def renoise(self, canvas_index, pass_index, length, vocab):
        return torch.randint(vocab, (length,), generator=self.generator)


class Counting(Constraint):
    """Its law lets independent positions decide, and counts how often it was asked."""

    classes = None

    def __init__(self):
        self.asked = 0

    def restrict(self, length, room, vocab):
        return Restriction(law=self)

    def propose(self, look):
        self.asked += 1
        return look.proposal


class Late(EntropyBound):
    """A rule of a caller's own that fails in its second pass."""

    calls = 0

    @classmethod
    def stacked(cls, rules, device):
        return cls(EntropyBound.stacked(rules, device).bound)

    def accept(self, canvas, proposal):
        type(self).calls += 1
        if type(self).calls > 1:
            raise ZeroDivisionError("an unlucky rule")
        return super().accept(canvas, proposal)


@pytest.fixture(scope="module")
def model():
    return model_for("a shared forward", sliding_window=12)


def answered(model, requests):
    engine, found = Engine(model), [[] for _ in requests]
    for request, events in zip(requests, found, strict=True):
        engine.add(request, events.append)
    while engine.has_work:
        engine.step()
    return found


def asked(model, number, **inputs):
    return make_request(prompt(4, number), GenerationConfig(seed=number, **FREE), {}, model.config, **inputs)


def unlucky(model):
    return replace(asked(model, 9), sampler=type("Late", (Late,), {"calls": 0})(0.1))


def test_noise_is_drawn_once(model):
    (alone,) = answered(model, [asked(model, 1, noise=Stream())])
    beside, failed = answered(model, [asked(model, 1, noise=Stream()), unlucky(model)])
    assert isinstance(failed[-1], Failed)
    assert ids(beside) == ids(alone)


def test_a_law_is_asked_once_a_pass(model):
    law = Counting()
    events, failed = answered(model, [asked(model, 1, constraint=law), unlucky(model)])
    assert isinstance(failed[-1], Failed)
    assert isinstance(events[-1], Answer)
    assert law.asked == sum(events[-1].passes)
    assert ids(events) == ids(answered(model, [asked(model, 1)])[0])


def test_a_step_s_noise_is_drawn_once(model, monkeypatch):
    """Token by token, where the product for all rows fails at one time."""
    config = GenerationConfig(decoder="autoregressive", ignore_eos=True, max_new_tokens=6)

    def requests():
        streams = (make_request(prompt(5, number), config, {}, model.config, noise=Stream()) for number in range(2))
        return list(streams)

    alone = [ids(answered(model, [request])[0]) for request in requests()]
    original, failed = model.logits, []

    def logits(hidden):
        out = original(hidden)
        if hidden.shape[0] > 1:
            failed.append(hidden)
            return out[:1]  # too few: what comes behind it fails
        return out

    monkeypatch.setattr(model, "logits", logits)
    assert [ids(events) for events in answered(model, requests())] == alone
    assert failed

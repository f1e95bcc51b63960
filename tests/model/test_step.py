"""One native call a layer for an autoregressive step, against the layer's modules: same kernels, same bits."""

import pytest
import torch

from scumble.formats import build
from scumble.model import transformer
from scumble.model.layer import Layer
from scumble.ops import choose
from scumble.ops.cpu import native
from tiny import FULL, SLIDING, prompt, tiny_model

pytestmark = pytest.mark.skipif(native.library() is None, reason="no compiler, or a processor without AVX2")


def native_model(form=None, **changes):
    model = tiny_model(dtype=torch.bfloat16, **changes)
    return model.use(choose("cpu", torch.bfloat16, model.config).ops).convert(form)


def states(model, sizes):
    """Hidden states of a prompt of 5 tokens and of `sizes` tokens at a time, past the window of 6; then of a canvas."""
    cache = model.new_cache()
    ids = torch.tensor(prompt(5 + sum(sizes)))
    out = [model.encode(part, cache) for part in ids.split([5, *sizes])]
    logits = model.denoise_logits(torch.tensor(prompt(8, seed=3)), cache)
    return torch.cat(out).float(), logits, cache


@pytest.mark.parametrize("form", [None, "int8", "int4"])
@pytest.mark.parametrize("sizes", [[1] * 20, [4, 1, 3, 2, 4, 4], [1, 7, 1]])
@pytest.mark.parametrize("layers", [(SLIDING, FULL), (SLIDING, SLIDING, FULL)])
def test_a_step_equals_its_modules(monkeypatch, sizes, form, layers):
    model = native_model(form, layers=layers)
    mine, logits, cache = states(model, sizes)
    monkeypatch.setattr(transformer, "stepper", lambda *_: None)
    plain, expected, other = states(model, sizes)
    assert torch.equal(mine, plain)
    assert torch.equal(logits, expected)
    assert [(one.start, one.end) for one in cache.layers] == [(one.start, one.end) for one in other.layers]


@pytest.mark.parametrize("form", [None, "int8", "int4"])
def test_no_module_runs_in_a_step(monkeypatch, form):
    model = native_model(form)
    cache = model.new_cache()
    model.encode(torch.tensor(prompt(5)), cache)
    monkeypatch.setattr(Layer, "forward", lambda *_: pytest.fail("a layer ran module by module"))
    model.encode(torch.tensor(prompt(1)), cache)


def test_a_replaced_weight_is_seen_at_once():
    model = native_model()
    before = states(model, [1])[0]
    mlp = model.layers[0].mlp
    mlp.down_proj = build.weight(-mlp.down_proj.state()["weight"], None, model.ops)
    assert not torch.equal(states(model, [1])[0], before)

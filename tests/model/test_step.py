"""One native call a layer for an autoregressive step, against the layer's modules.

Both run the same kernels in the same order on the same numbers, but for the number of rows they are tuned for, so
hidden states agree to bfloat16's rounding: a few units of 2⁻⁸ of their size, after three layers.
"""

import pytest
import torch

from scumble.kernels import native
from scumble.model import transformer
from scumble.quant import quantize
from tiny import FULL, SLIDING, prompt, tiny_model

pytestmark = pytest.mark.skipif(native.library() is None, reason="no compiler, or a processor without AVX-512 BF16")


def states(model, sizes):
    """Hidden states of a prompt of 5 tokens and of `sizes` tokens at a time, past the window of 6; then of a canvas."""
    cache = model.new_cache()
    ids = torch.tensor(prompt(5 + sum(sizes)))
    out = [model.encode(part, cache) for part in ids.split([5, *sizes])]
    logits = model.denoise_logits(torch.tensor(prompt(8, seed=3)), cache)
    return torch.cat(out).float(), logits, cache


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("sizes", [[1] * 20, [4, 1, 3, 2, 4, 4], [1, 7, 1]])
@pytest.mark.parametrize("layers", [(SLIDING, FULL), (SLIDING, SLIDING, FULL)])
def test_a_step_equals_its_modules(monkeypatch, sizes, int8, layers):
    model = tiny_model(dtype=torch.bfloat16, layers=layers)
    if int8:
        quantize(model)
    mine, logits, cache = states(model, sizes)
    monkeypatch.setattr(transformer, "stepper", lambda *_: None)
    plain, expected, other = states(model, sizes)
    size = plain.square().mean().sqrt()
    assert float((mine - plain).abs().max() / size) < 2.0**-4
    assert float((mine - plain).abs().mean() / size) < 2.0**-7
    assert float((logits - expected).abs().mean()) < 0.05 * float(expected.std())
    assert [(one.start, one.end) for one in cache.layers] == [(one.start, one.end) for one in other.layers]


def test_a_replaced_weight_is_seen_at_once():
    model = tiny_model(dtype=torch.bfloat16)
    before = states(model, [1])[0]
    model.layers[0].mlp.down_proj.weight = torch.nn.Parameter(-model.layers[0].mlp.down_proj.weight)
    assert not torch.equal(states(model, [1])[0], before)


def test_float32_weights_in_between_fall_back():
    model = tiny_model(dtype=torch.bfloat16)
    plain = states(model, [1])[0]
    norm = model.layers[1].input_layernorm
    norm.weight = torch.nn.Parameter(norm.weight.float())
    assert float((states(model, [1])[0] - plain).abs().mean()) < 0.05

"""The model's parts against slow restatements of MODEL's formulas."""

import pytest
import torch

from scumble.config import Rope
from scumble.formats.floats import FloatExperts
from scumble.model.cache import LayerCache
from scumble.model.layer import Layer
from scumble.model.layers import rope_frequencies, rope_tables
from scumble.model.rounding import Room
from scumble.ops import REFERENCE
from scumble.ops.reference import apply_rope, attend_grouped, causal_mask
from tiny import prompt, tiny_model

MODEL = tiny_model()


def test_rms_norm_computes_in_float32_and_returns_the_input_s_format():
    x = torch.randn(3, 8)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(REFERENCE.rms_norm(x, None, 1e-6), expected)
    assert REFERENCE.rms_norm(x.bfloat16(), torch.ones(8), 1e-6).dtype == torch.bfloat16


def test_proportional_frequencies_span_the_head_and_leave_the_rest_unrotated():
    found = rope_frequencies(Rope("proportional", 1e6, 0.25), 16)
    assert found.tolist() == pytest.approx([1.0, 1e6 ** (-2 / 16), 0, 0, 0, 0, 0, 0])


def test_rope_depends_on_the_distance_only():
    q, k = torch.randn(2, 1, 1, 16).double()
    frequencies = rope_frequencies(Rope("default", 1e4), 16)

    def score(a: int, b: int) -> float:
        qa = apply_rope(q, *rope_tables(torch.tensor([a]), frequencies, torch.float64))
        return float((qa * apply_rope(k, *rope_tables(torch.tensor([b]), frequencies, torch.float64))).sum())

    assert score(3, 1) == pytest.approx(score(103, 101), abs=1e-4)
    assert score(3, 1) != pytest.approx(score(3, 2), abs=1e-4)


@pytest.mark.parametrize("window", [None, 3])
def test_grouped_attention_equals_attention_with_repeated_keys(window):
    n, seen, heads, groups, dim = 4, 9, 6, 2, 8
    q, k, v = torch.randn(n, heads, dim), torch.randn(groups, seen, dim), torch.randn(groups, seen, dim)
    mask = causal_mask(n, seen, window, q.device)
    found = attend_grouped(q, k, v, mask)
    for head in range(heads):
        group = head // (heads // groups)
        for i in range(n):
            position = seen - n + i
            first = 0 if window is None else max(0, position - window + 1)
            keys, values = k[group, first : position + 1], v[group, first : position + 1]
            expected = torch.softmax(q[i, head] @ keys.T, -1) @ values
            torch.testing.assert_close(found[i, head], expected, rtol=1e-4, atol=1e-5)


def test_experts_equal_a_loop_over_tokens():
    layer = MODEL.layers[0]
    assert isinstance(layer, Layer)
    assert isinstance(layer.experts, FloatExperts)
    x = torch.randn(11, 32)
    weights, chosen, probabilities = layer.router(x)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(11))
    expected = torch.zeros_like(x)
    for token in range(11):
        for weight, expert in zip(weights[token], chosen[token], strict=True):
            gate, up = (layer.experts.gate_up_proj[expert] @ x[token]).chunk(2)
            hidden = torch.nn.functional.gelu(gate, approximate="tanh") * up
            expected[token] += weight * (layer.experts.down_proj[expert] @ hidden)
    torch.testing.assert_close(layer.experts(x, weights, chosen), expected, rtol=1e-4, atol=1e-4)


def test_a_layer_cache_shows_the_kept_tail_plus_what_is_new():
    cache, written = LayerCache(1, 2, 3, torch.float32, torch.device("cpu")), []
    for step, count in enumerate([2, 5, 1, 1, 4, 3]):
        new = torch.randn(count, 1, 2)
        seen = torch.cat([*written, new])[-3 - count :] if written else new
        beside_keys, _ = cache.beside(new * 9, new, Room())
        assert torch.equal(beside_keys[0, -count:], new[:, 0] * 9)
        keys, values = cache.append(new, new + step, Room())
        assert torch.equal(keys[0], seen[:, 0])
        assert torch.equal(values[0, -count:], new[:, 0] + step)
        written.append(new)


def test_a_canvas_sees_all_of_itself_and_an_encoded_token_only_the_past():
    """Changing the last token changes the first one's logits when denoised, and not when encoded."""
    cache = MODEL.new_cache()
    MODEL.encode(torch.tensor(prompt(4)), cache)
    canvas = torch.tensor(prompt(8))
    other = canvas.clone()
    other[-1] += 1
    assert not torch.equal(MODEL.denoise_logits(canvas, cache)[0], MODEL.denoise_logits(other, cache)[0])
    first, second = (MODEL.encode(ids, MODEL.new_cache()) for ids in (canvas, other))
    # Not bitwise: the other token may go to other experts, whose groups then have other sizes and round differently.
    torch.testing.assert_close(first[:-1], second[:-1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(first[-1], second[-1], atol=1e-2)

"""The model against `transformers`: hidden states of encode, logits of denoise, float32, random checkpoints.

The tolerance of 1e-4 on logits that spread over ±10 is ten times what two correct float32 programs differ by when all
goes well, and three times the worst case that `test_oracle.py` measures between `transformers`' own kernels.
A wrong position, window, norm, scale or scalar moves the logits by 0.01 and more.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oracle import Shape, random_shape

from .conftest import Pair, PairMaker

TOLERANCE = 1e-4
WINDOW = 8
TEMPERATURE = 0.6


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.float32
    assert (ours - theirs).abs().max().item() <= TOLERANCE


def some_ids(count: int, vocab: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(vocab, (count,), generator=torch.Generator().manual_seed(seed))


def assert_same_model(both: Pair, prompt_length: int, canvases: int = 1) -> None:
    """The whole of what a generation asks of a model: encode a prompt; denoise without and with self-conditioning;
    encode the finished canvas behind the prompt; and again on the next one."""
    shape = both.shape
    cache = both.model.new_cache()
    context = some_ids(prompt_length, shape.vocab_size, seed=1)
    theirs_cache = None
    for index in range(canvases):
        hidden = both.model.encode(context, cache)
        expected, theirs_cache = both.oracle.encode(context, theirs_cache)
        assert_close(hidden, expected)

        canvas = some_ids(shape.canvas_length, shape.vocab_size, seed=2 + index)
        logits = both.model.denoise_logits(canvas, cache)
        assert_close(logits, both.oracle.denoise_logits(canvas, theirs_cache))

        # The next pass sees another canvas and the last pass's logits over temperature. Both sides get the oracle's.
        previous = both.oracle.denoise_logits(canvas, theirs_cache) / TEMPERATURE
        following = canvas.flip(0)
        conditioned = both.model.denoise_logits(following, cache, previous)
        assert_close(conditioned, both.oracle.denoise_logits(following, theirs_cache, previous))
        assert (conditioned - both.model.denoise_logits(following, cache)).abs().max() > 0.01  # it does matter

        context = logits.argmax(-1)


@pytest.mark.parametrize(
    "length", [1, 3, WINDOW - 2, WINDOW - 1, WINDOW, WINDOW + 1, WINDOW + 2, 3 * WINDOW, 3 * WINDOW + 5]
)
def test_prompt_around_the_sliding_window(pair: PairMaker, length: int):
    """Sliding layers of a canvas see the last window - 1 tokens of the context; one token more or less shows."""
    assert_same_model(pair(Shape(sliding_window=WINDOW)), length)


def test_the_border_of_the_window_is_visible(pair: PairMaker):
    """The test above would notice a window that is off by one: in a model of one sliding layer (and a full one, whose
    output is silenced) the token at distance window - 1 before the canvas matters and the one before it does not."""
    both = pair(Shape(layers="sf", sliding_window=WINDOW), seed=3)
    context, canvas = some_ids(20, 97), some_ids(12, 97, seed=1)
    full = both.model.layers[-1].post_attention_layernorm.weight
    kept = full.clone()
    try:
        full.zero_()

        def logits_with(position: int) -> torch.Tensor:
            cache = both.model.new_cache()
            changed = context.clone()
            changed[position] = (changed[position] + 1) % 97
            both.model.encode(changed, cache)
            return both.model.denoise_logits(canvas, cache)

        cache = both.model.new_cache()
        both.model.encode(context, cache)
        logits = both.model.denoise_logits(canvas, cache)
        assert (logits_with(20 - (WINDOW - 1)) - logits).abs().max() > 1e-3
        assert torch.equal(logits_with(20 - WINDOW), logits)
    finally:
        full.copy_(kept)


@pytest.mark.parametrize("window", [2, 5, 12, 13, 40])
def test_several_canvases(pair: PairMaker, window: int):
    """Canvases of 12 tokens, encoded one behind the other: narrower than, equal to and wider than the window."""
    assert_same_model(pair(Shape(sliding_window=window)), prompt_length=7, canvases=4)


@pytest.mark.parametrize("sizes", [[1] * 21, [3, 3, 3, 3, 3, 3, 3], [7, 14], [8, 8, 5], [20, 1], [1, 20], [9, 2, 10]])
def test_encode_in_chunks(pair: PairMaker, sizes: list[int]):
    """Chunks give what one piece gives, and leave a cache that denoises the same."""
    both = pair(Shape(sliding_window=WINDOW))
    ids, canvas = some_ids(21, 97), some_ids(12, 97, seed=1)
    cache = both.model.new_cache()
    hidden = torch.cat([both.model.encode(chunk, cache) for chunk in ids.split(sizes)])
    expected, theirs = both.oracle.encode(ids)
    assert_close(hidden, expected)
    assert_close(both.model.denoise_logits(canvas, cache), both.oracle.denoise_logits(canvas, theirs))


def test_denoising_leaves_the_cache_alone(pair: PairMaker):
    both = pair(Shape(sliding_window=WINDOW))
    ids, canvas = some_ids(21, 97), some_ids(12, 97, seed=1)
    cache, untouched = both.model.new_cache(), both.model.new_cache()
    for chunk in ids.split(6):
        both.model.encode(chunk, cache)
        both.model.encode(chunk, untouched)
        first = both.model.denoise_logits(canvas, cache)
        assert torch.equal(both.model.denoise_logits(canvas, cache), first)
    assert torch.equal(both.model.denoise_logits(canvas, untouched), first)


@pytest.mark.parametrize("length", [1, 5, 11])
def test_canvas_shorter_than_the_checkpoints(pair: PairMaker, length: int):
    both = pair(Shape())
    ids, canvas = some_ids(15, 97), some_ids(length, 97, seed=1)
    cache = both.model.new_cache()
    both.model.encode(ids, cache)
    _, theirs = both.oracle.encode(ids)
    assert_close(both.model.denoise_logits(canvas, cache), both.oracle.denoise_logits(canvas, theirs))


def test_encode_and_denoise_have_layer_scalars_of_their_own(pair: PairMaker):
    """The only text weights that the modes do not share. Giving one mode the other's scalars must be visible."""
    both = pair(Shape(layers="sfsf"), seed=4)
    assert_same_model(both, prompt_length=10, canvases=2)
    encoder, decoder = both.oracle.model.model.encoder.language_model, both.oracle.model.model.decoder
    hidden, cache = both.oracle.encode(range(10))
    logits = both.oracle.denoise_logits(torch.arange(12), cache)
    scalars = [(a.layer_scalar, b.layer_scalar) for a, b in zip(encoder.layers, decoder.layers, strict=True)]
    originals = [(a.clone(), b.clone()) for a, b in scalars]
    try:
        for (a, b), (old_a, old_b) in zip(scalars, originals, strict=True):
            a.copy_(old_b)
            b.copy_(old_a)
        swapped, cache = both.oracle.encode(range(10))
        assert (swapped - hidden).abs().max() > 100 * TOLERANCE
        assert (both.oracle.denoise_logits(torch.arange(12), cache) - logits).abs().max() > 100 * TOLERANCE
    finally:
        for (a, b), (old_a, old_b) in zip(scalars, originals, strict=True):
            a.copy_(old_a)
            b.copy_(old_b)


@pytest.mark.parametrize(
    ("heads", "sliding", "full"), [(4, 4, 4), (4, 2, 1), (4, 1, 2), (6, 3, 2), (6, 2, 6), (2, 1, 1)]
)
def test_grouped_query_attention_of_both_layer_kinds(pair: PairMaker, heads: int, sliding: int, full: int):
    shape = Shape(
        layers="sfsf", num_attention_heads=heads, num_key_value_heads=sliding, num_global_key_value_heads=full
    )
    assert_same_model(pair(shape), prompt_length=11, canvases=2)


@pytest.mark.parametrize(("sliding", "full"), [(4, 32), (16, 16), (16, 8), (6, 24)])
def test_head_sizes_of_both_layer_kinds(pair: PairMaker, sliding: int, full: int):
    assert_same_model(pair(Shape(layers="sff", head_dim=sliding, global_head_dim=full)), prompt_length=11)


@pytest.mark.parametrize("factor", [0.25, 0.5, 1.0])
def test_partial_rotary_embedding(pair: PairMaker, factor: float):
    """Low bases make every rotated pair turn visibly within these short contexts."""
    shape = Shape(global_head_dim=32, partial_rotary_factor=factor, full_theta=50.0, sliding_theta=20.0)
    assert_same_model(pair(shape), prompt_length=30, canvases=2)


def test_last_layer_is_full_whatever_the_config_says(pair: PairMaker):
    assert_same_model(pair(Shape(layers="fss")), prompt_length=20, canvases=2)
    assert_same_model(pair(Shape(layers="ss")), prompt_length=20, canvases=2)
    assert_same_model(pair(Shape(layers="f")), prompt_length=20, canvases=2)


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_tied_experts(pair: PairMaker, top_k: int):
    """Experts in identical pairs: every token meets exact ties, for odd k also at the border of the top k. Which of two
    twins is taken cannot matter, as long as each tie is broken once: not twice the same expert, not one dropped."""
    assert_same_model(pair(Shape(num_experts=8, top_k_experts=top_k), tied_experts=True), prompt_length=11, canvases=2)


@pytest.mark.parametrize(("experts", "top_k", "unused"), [(8, 2, 4), (16, 2, 12), (10, 4, 2), (5, 1, 3)])
def test_unused_experts(pair: PairMaker, experts: int, top_k: int, unused: int):
    """Experts that no token chooses get no rows at all; their weights are so large that one row would be noticed."""
    both = pair(Shape(num_experts=experts, top_k_experts=top_k), unused_experts=unused)
    assert_same_model(both, prompt_length=11, canvases=2)
    assert_same_model(both, prompt_length=1)  # one token: nearly all experts are unused


@pytest.mark.parametrize(("experts", "top_k"), [(4, 4), (1, 1), (16, 1), (7, 3)])
def test_number_of_experts(pair: PairMaker, experts: int, top_k: int):
    assert_same_model(pair(Shape(num_experts=experts, top_k_experts=top_k)), prompt_length=11)


@pytest.mark.parametrize("cap", [5.0, 30.0])
def test_soft_cap(pair: PairMaker, cap: float):
    both = pair(replace(Shape(), final_logit_softcapping=cap), sharpness=2.0)
    assert_same_model(both, prompt_length=11)


def test_vision_checkpoints_encode_text_causally(pair: PairMaker):
    """`use_bidirectional_attention: "vision"` is the release's setting; without images nothing changes."""
    assert_same_model(pair(Shape(use_bidirectional_attention="vision")), prompt_length=20, canvases=2)


@pytest.mark.parametrize("seed", range(8))
def test_random_configurations(pair: PairMaker, seed: int):
    shape = random_shape(seed)
    assert_same_model(pair(shape, seed), prompt_length=2 * shape.sliding_window + seed, canvases=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 160))
def test_many_random_configurations(pair: PairMaker, seed: int):
    shape = random_shape(seed)
    for prompt_length in (1, shape.sliding_window - 1, shape.sliding_window, 3 * shape.sliding_window):
        assert_same_model(pair(shape, seed), prompt_length, canvases=3)

"""What the cache holds: encoding fills it, in any pieces; denoising and reading leave it as it was."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble.model import Segment
from tiny import prompt, tiny_model

MODEL = tiny_model()
L = MODEL.config.canvas_length


def snapshot(cache):
    return [
        (layer.keys[:, layer.start : layer.end].clone(), layer.values[:, layer.start : layer.end].clone())
        for layer in cache.layers
    ]


@pytest.mark.parametrize("length", [1, 5, 6, 7, 40])
def test_denoising_leaves_the_cache_as_it_was(length):
    cache = MODEL.new_cache()
    MODEL.encode(torch.tensor(prompt(length)), cache)
    before, count = snapshot(cache), cache.length
    for _ in range(5):  # often enough that buffers grow and move
        MODEL.denoise_logits(torch.tensor(prompt(L)), cache)
    assert cache.length == count
    for old, new in zip(before, snapshot(cache), strict=True):
        assert torch.equal(old[0], new[0])
        assert torch.equal(old[1], new[1])


def test_a_sliding_layer_s_buffer_stays_bounded_in_a_long_context():
    cache, ids = MODEL.new_cache(), torch.tensor(prompt(L))
    for _ in range(60):
        MODEL.denoise_logits(ids, cache)
        MODEL.encode(ids, cache)
    window = MODEL.config.sliding_window
    for layer, config in zip(cache.layers, MODEL.config.layers, strict=True):
        if config.is_sliding:
            assert layer.end - layer.start == window - 1
            assert layer.keys.shape[1] <= 2 * (window - 1 + L)
        else:
            assert layer.end - layer.start == cache.length == 60 * L


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
@settings(deadline=None, max_examples=20)
def test_encoding_in_pieces_equals_encoding_at_once(pieces):
    """Whatever the pieces, around the sliding window's border too; products of other sizes round differently."""
    ids = torch.tensor(prompt(sum(pieces)))
    whole = MODEL.encode(ids, MODEL.new_cache())
    cache = MODEL.new_cache()
    parts = torch.cat([MODEL.encode(piece, cache) for piece in ids.split(pieces)])
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 3, 7, 30])
def test_quiet_segments_fill_the_cache_like_others_and_return_nothing(dtype, tokens):
    """What a quiet segment skips (the last layer behind its keys and values) is not what later segments read."""
    model = tiny_model(dtype=dtype)
    loud, quiet = model.new_cache(), model.new_cache()
    ids = torch.tensor(prompt(tokens))
    model([Segment(ids, loud, "encode")])
    assert model([Segment(ids, quiet, "encode", quiet=True)]).shape == (0, 32)
    assert quiet.length == loud.length == tokens
    tolerance = 1e-5 if dtype is torch.float32 else 0.05  # products of other sizes round differently
    for one, two in zip(loud.layers, quiet.layers, strict=True):
        for name in ("keys", "values"):
            live = [getattr(cache, name)[:, cache.start : cache.end] for cache in (one, two)]
            torch.testing.assert_close(*live, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_quiet_and_heard_segments_of_several_rows_share_a_forward():
    rows = [(MODEL.new_cache(), MODEL.new_cache()) for _ in range(3)]
    commits, canvases = ([torch.tensor(prompt(n, k)) for n, k in sizes] for sizes in (
        ((5, 1), (2, 2), (9, 3)), ((L, 4), (3, 5), (L, 6))))  # fmt: skip
    alone, together = [], []
    for (one, two), commit, canvas in zip(rows, commits, canvases, strict=True):
        MODEL([Segment(commit, one, "encode")])
        alone.append(MODEL([Segment(canvas, one, "denoise")]))
        together += [Segment(commit, two, "encode", quiet=True), Segment(canvas, two, "denoise")]
    torch.testing.assert_close(MODEL(together), torch.cat(alone), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_commit_and_the_next_first_pass_fuse_into_one_forward():
    """Two segments of one row in one batch: the second reads what the first writes in the same layer."""
    separate, fused = MODEL.new_cache(), MODEL.new_cache()
    for cache in (separate, fused):
        MODEL.encode(torch.tensor(prompt(7)), cache)
    commit, canvas, soft = torch.tensor(prompt(5, 1)), torch.tensor(prompt(L, 2)), torch.randn(L, 32)
    hidden = [MODEL([Segment(commit, separate, "encode")]), MODEL([Segment(canvas, separate, "denoise", soft)])]
    together = MODEL([Segment(commit, fused, "encode"), Segment(canvas, fused, "denoise", soft)])
    torch.testing.assert_close(together, torch.cat(hidden), rtol=1e-4, atol=1e-4)
    assert fused.length == separate.length == 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 3, 7, 20])
def test_reading_gives_what_encoding_gives_and_leaves_the_cache_as_it_was(dtype, tokens):
    model = tiny_model(dtype=dtype)
    cache = model.new_cache()
    model.encode(torch.tensor(prompt(9)), cache)
    before = snapshot(cache)
    ids = torch.tensor(prompt(tokens, 4))
    with torch.no_grad():
        read = model([Segment(ids, cache, "read"), Segment(ids, cache, "read")]).split(tokens)
    assert cache.length == 9
    for old, new in zip(before, snapshot(cache), strict=True):
        assert torch.equal(old[0], new[0])
        assert torch.equal(old[1], new[1])
    encoded = model.encode(ids, cache)
    near = {"rtol": 1e-4, "atol": 1e-4} if dtype is torch.float32 else {"rtol": 0.0, "atol": 0.04}
    for one in read:
        torch.testing.assert_close(one, encoded, **near)

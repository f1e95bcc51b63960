"""The arithmetic, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scumble.bench import counts
from scumble.bench.shapes import RELEASE, SMALL, TINY, random_model, shape, weight_bytes
from scumble.bench.subject import Subject
from scumble.config import LayerConfig, ModelConfig
from scumble.errors import InvalidRequest
from scumble.model import Transformer
from scumble.ops import choose

# One sliding and one full layer; every size small enough to multiply in one's head.
TWO_LAYERS = ModelConfig(
    vocab_size=100, hidden_size=10, intermediate_size=20, num_attention_heads=2,
    num_experts=4, top_k_experts=1, moe_intermediate_size=5,
    layers=(LayerConfig("sliding_attention", 4, 1), LayerConfig("full_attention", 6, 2)),
    sliding_window=9, canvas_length=8,
)  # fmt: skip


def test_attention_of_one_pass() -> None:
    work = counts.pass_work(TWO_LAYERS, canvas=8, context=20)["attention"]
    # projections: sliding 10 · (8 + 8 + 4 + 4) = 240 (q, o, k, v); full 10 · (12 + 12 + 12) = 360 (q, o, k; no v)
    # scores and mixing: 4 · 8 tokens · 2 heads · head size · keys: sliding sees 8 of the context, full sees 20
    sliding, full = 4 * 8 * 2 * 4 * (8 + 8), 4 * 8 * 2 * 6 * (20 + 8)
    assert work.flops == 2 * 8 * (240 + 360) + sliding + full
    assert work.weights == 600
    assert work.cached == 8 * 2 * 1 * 4 + 20 * 2 * 2 * 6


def test_the_other_stages_of_one_pass() -> None:
    work = counts.pass_work(TWO_LAYERS, canvas=8, context=20)
    assert (work["dense"].flops, work["dense"].weights) == (2 * 2 * 8 * 600, 2 * 600)  # 3 · 10 · 20 a layer
    assert (work["conditioning"].flops, work["conditioning"].weights) == (2 * 8 * 600, 600)
    assert (work["vocabulary"].flops, work["vocabulary"].weights) == (2 * 2 * 8 * 1000, 1000)  # head, soft embedding
    assert work["experts"].flops == 2 * (2 * 8 * 40 + 2 * 8 * 150)  # router 10 · 4, one expert 3 · 10 · 5
    hit = 4 * (1 - 0.75**8)
    assert work["experts"].weights == pytest.approx(2 * (40 + hit * 150))


def test_rows_share_weights_and_nothing_else() -> None:
    one, two = (counts.pass_work(TWO_LAYERS, 8, 20, rows) for rows in (1, 2))
    for stage in counts.STAGES:
        assert two[stage].flops == 2 * one[stage].flops
    assert two["attention"].weights == one["attention"].weights
    assert two["attention"].cached == 2 * one["attention"].cached


def test_encoding_is_causal_and_sliding_layers_stop_at_their_window() -> None:
    work = counts.encode_work(TWO_LAYERS, tokens=3, context=10)
    # token i of 3 sees 10 + i + 1 keys in the full layer; in the sliding one 8 and itself
    scores = 4 * 2 * 4 * (9 + 9 + 9) + 4 * 2 * 6 * (11 + 12 + 13)
    assert work["attention"].flops == 2 * 3 * 600 + scores
    assert work["vocabulary"].flops == 2 * 1 * 1000
    assert counts.encode_work(TWO_LAYERS, 3, 10, predicted=0)["vocabulary"] == counts.Work(0, 0)


def test_sliding_layers_are_flat_past_their_window() -> None:
    sliding_only = replace(TWO_LAYERS, layers=(TWO_LAYERS.layers[0],))
    far, farther = (counts.pass_work(sliding_only, 8, context)["attention"] for context in (100, 1000))
    assert far == farther
    near = counts.pass_work(sliding_only, 8, 7)["attention"]
    assert near.cached < far.cached


def test_touched_experts() -> None:
    assert counts.touched(TWO_LAYERS, 1) == 1
    assert counts.touched(TWO_LAYERS, 10**4) == pytest.approx(4)
    assert counts.touched(RELEASE, 256) > 127.9  # a canvas reads practically every expert


def test_the_release_in_published_numbers() -> None:
    elements = counts.parameters(RELEASE)
    assert elements["experts"] == pytest.approx(22.84e9, rel=1e-3)
    assert elements["attention"] == pytest.approx(1.11e9, rel=1e-2)
    assert elements["dense"] == pytest.approx(0.54e9, rel=1e-2)
    assert elements["vocabulary"] == pytest.approx(0.74e9, rel=1e-2)
    flops = {stage: work.flops / 1e12 for stage, work in counts.pass_work(RELEASE, 256, 0).items()}
    assert flops["experts"] == pytest.approx(0.73, abs=0.01)
    assert flops["vocabulary"] == pytest.approx(0.76, abs=0.01)
    scores = 4 * 256 * 16 * 256 * (25 * 256 + 5 * 512) / 1e12  # not contained in the published sum
    assert sum(flops.values()) - scores == pytest.approx(2.34, abs=0.02)


@pytest.mark.parametrize("config", [TINY, replace(TINY, layers=TINY.layers[-1:])])
def test_parameters_are_those_of_the_model(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = Transformer(config).to(torch.bfloat16)
    matrices = sum(weight.numel() for weight in model.parameters() if weight.ndim > 1)
    assert matrices == sum(counts.parameters(config).values())
    assert weight_bytes(config, "bfloat16") == sum(weight.nbytes for weight in model.parameters())


def test_shapes() -> None:
    assert sum(counts.parameters(SMALL).values()) == pytest.approx(315e6, rel=0.01)
    assert shape("wide").vocab_size == 262_144
    cut = shape("release", 7)
    assert [layer.is_sliding for layer in cut.layers] == [True] * 5 + [False] + [False]
    with pytest.raises(InvalidRequest, match="small-315m, release"):
        shape("small")
    with pytest.raises(InvalidRequest, match="1 … 12"):
        shape("small-315m", 13)


def test_random_weights_are_seeded_and_sized() -> None:
    one, same, other = (random_model(TINY, torch.bfloat16, seed, torch.device("cpu")) for seed in (1, 1, 2))
    for (name, a), (_, b) in zip(one.state_dict().items(), same.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(one.embed_tokens.weight, other.embed_tokens.weight)
    table = one.embed_tokens.weight.float()
    assert float(table.std()) == pytest.approx(64**-0.5, rel=0.05)
    assert len(table.unique(dim=0)) == TINY.vocab_size  # no two ids share a row
    hidden = one.encode(torch.arange(5, 40), one.new_cache()).float()
    assert hidden.isfinite().all()
    assert 0.5 < float(hidden.std()) < 2


def test_random_weights_run_on_the_operations_of_their_device() -> None:
    cpu = torch.device("cpu")
    assert random_model(TINY, torch.bfloat16, 0, cpu).ops.name == choose(cpu, torch.bfloat16, TINY).ops.name


def test_on_a_card_a_rounded_shape_is_made_there_and_written_to_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("scumble.bench.subject.available_bytes", lambda: 8 * 10**9)  # the host has little memory
    for device in ("auto", "cuda"):
        spec = Subject(shape="release", dtype="fp8", device=device).memory_spec()
        assert (spec["shape"], spec["path"], spec["dtype"]) == ("release", None, "fp8")


def test_what_does_not_fit_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scumble.bench.subject.available_bytes", lambda: 8 * 10**9)
    with pytest.raises(InvalidRequest, match=r"50\.5 GB .* 8\.0 GB free; --layers"):
        Subject(shape="release")
    Subject(shape="small-315m")

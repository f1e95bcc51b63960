"""The oracle itself: is what the other tests lean on firm? Nothing here uses the engine."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from oracle import (
    BORDER,
    Oracle,
    RecordedNoise,
    Settings,
    Shape,
    build_oracle,
    clone_cache,
    decisive_run,
    inverse_cdf,
    random_shape,
    stored_names,
)

PROMPT = [5, 17, 40, 3, 77, 8, 21, 60, 33, 12, 9]
EARLY = Settings(
    max_new_tokens=30, max_denoising_steps=10, entropy_bound=2.0, confidence_threshold=0.3, ignore_eos=True
)
"""Accepts freely and asks for little confidence, so that canvases of a sharp random model stop before the last pass."""


def test_noise_is_a_function_of_its_address():
    noise, again, other = RecordedNoise(3), RecordedNoise(3), RecordedNoise(4)
    uniform = noise.uniform(1, 2, 50)
    assert uniform.dtype == torch.float64
    assert 0 <= uniform.min() <= uniform.max() < 1
    again.renoise(0, 0, 50, 97)  # what was asked before makes no difference
    assert torch.equal(uniform, again.uniform(1, 2, 50))
    ids = noise.renoise(1, 2, 200, 97)
    assert ids.dtype == torch.int64
    assert set(ids.tolist()) <= set(range(97))
    assert not torch.equal(uniform, other.uniform(1, 2, 50))
    assert not torch.equal(noise.initial(0, 50, 97), noise.initial(1, 50, 97))


def test_inverse_cdf_takes_the_first_id_beyond_the_target():
    probs = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).expand(5, -1)
    uniform = torch.tensor([0.0, 0.25, 0.5, 0.75, 0.999], dtype=torch.float64)  # at a border the next id wins
    assert inverse_cdf(probs, uniform).tolist() == [0, 2, 2, 3, 3]


def test_weights_hide_nothing():
    """No norm, scale or scalar is left at 1, and encode and denoise scalars differ in every layer."""
    oracle = build_oracle(Shape(layers="sfsf"), seed=5)
    encoder, decoder = oracle.model.model.encoder.language_model, oracle.model.model.decoder
    for name, parameter in decoder.named_parameters():
        assert (parameter != 1).all(), name
        assert parameter.std() > 0.01, name
    for ours, theirs in zip(encoder.layers, decoder.layers, strict=True):
        assert abs(ours.layer_scalar - theirs.layer_scalar) > 1e-3
        assert ours.router.scale is theirs.router.scale  # while everything else is shared


def eager_twin(oracle: Oracle) -> Oracle:
    """The same weights run by other kernels of transformers: eager attention and a loop over experts instead of fused
    attention and grouped products. A second correct implementation, so to speak."""
    twin = Oracle(oracle.shape, copy.deepcopy(oracle.model))
    twin.model.set_attn_implementation("eager")
    twin.model.set_experts_implementation("eager")
    return twin


@pytest.mark.parametrize("seed", range(4))
def test_rounding_floor_of_one_pass(seed: int):
    """How far apart do two correct float32 programs come? The parity tolerance of 1e-4 is three times this floor."""
    oracle = build_oracle(random_shape(seed), seed)
    canvas = torch.arange(oracle.shape.canvas_length)
    logits = [side.denoise_logits(canvas, side.encode(range(3, 33))[1]) for side in (oracle, eager_twin(oracle))]
    assert (logits[0] - logits[1]).abs().max() < 3e-5
    assert logits[0].std() > 1


@pytest.mark.parametrize("seed", range(4))
def test_rounding_floor_of_a_generation(seed: int):
    """Over many self-conditioned passes rounding errors stay below `BORDER`, so a run that withstands `BORDER` is the
    same run for every correct program."""
    oracle = build_oracle(random_shape(seed), seed, sharpness=1.5)
    prompt = [token % oracle.shape.vocab_size for token in PROMPT]
    noise, run = decisive_run(oracle, prompt, EARLY)
    twin = eager_twin(oracle).generate(prompt, noise, EARLY)
    assert twin.token_ids == run.token_ids
    for one, other in zip(run.passes, twin.passes, strict=True):
        assert torch.equal(one.canvas_out, other.canvas_out)
        assert (one.logits - other.logits).abs().max() < BORDER


def test_run_equals_the_published_loop():
    """The recorder changes nothing: a canvas loop written from the description, on the same forward passes and the
    same noise, gives the same passes, one by one."""
    oracle, settings = build_oracle(Shape(), seed=1, sharpness=1.5), EARLY
    noise, run = decisive_run(oracle, PROMPT, settings, first_seed=1)

    length, vocab, steps = oracle.shape.canvas_length, oracle.shape.vocab_size, settings.max_denoising_steps
    _, cache = oracle.encode(PROMPT)
    records, tokens = iter(run.passes), []
    for canvas_index in range(3):
        canvas = noise.initial(canvas_index, length, vocab)
        previous, last_argmax = None, None
        for pass_index in range(steps):
            record = next(records)
            assert (record.canvas_index, record.pass_index) == (canvas_index, pass_index)
            assert torch.equal(record.canvas_in, canvas)
            temperature = 0.4 + 0.4 * (steps - pass_index) / steps
            logits = oracle.denoise_logits(canvas, cache, previous)
            torch.testing.assert_close(record.logits, logits, rtol=0, atol=1e-5)
            previous = logits / temperature
            probs = previous.softmax(-1)
            entropy = -(probs * probs.log()).sum(-1)
            torch.testing.assert_close(record.entropy, entropy, rtol=0, atol=1e-5)
            order = entropy.argsort()
            before = entropy[order].cumsum(0) - entropy[order]
            accepted = torch.zeros(length, dtype=torch.bool)
            accepted[order[before <= settings.entropy_bound]] = True
            assert torch.equal(record.accepted, accepted)
            proposal = inverse_cdf(probs, noise.uniform(canvas_index, pass_index, length))
            assert torch.equal(record.proposal, proposal)
            canvas = torch.where(accepted, proposal, noise.renoise(canvas_index, pass_index, length, vocab))
            assert torch.equal(record.canvas_out, canvas)
            argmax = previous.argmax(-1)
            assert torch.equal(record.argmax, argmax)
            stable = last_argmax is not None and torch.equal(argmax, last_argmax)
            last_argmax = argmax
            assert record.stopped == (stable and entropy.mean().item() < settings.confidence_threshold)
            if record.stopped:
                break
        tokens += argmax.tolist()
        oracle.encode(argmax, cache)
    assert next(records, None) is None
    assert run.token_ids == tokens[:30]
    assert run.finish_reason == "length"
    assert sum(run.passes_per_canvas) < 3 * steps, "no canvas stopped early, so half of this test tested nothing"


def test_batch_rows_equal_rows_alone():
    """transformers' own batch of equal prompts: a row that is done waits without changing."""
    oracle, settings = build_oracle(Shape(), seed=1, sharpness=1.5), EARLY
    prompts = [PROMPT, [(3 * token) % 97 for token in PROMPT]]
    alone = [decisive_run(oracle, ids, settings, first_seed=10 * row) for row, ids in enumerate(prompts)]
    together = oracle.generate_batch(prompts, [noise for noise, _ in alone], settings)
    for (_, single), row in zip(alone, together, strict=True):
        assert row.token_ids == single.token_ids
        assert row.passes_per_canvas == single.passes_per_canvas
    assert together[0].passes_per_canvas != together[1].passes_per_canvas


def test_end_of_sequence_cuts():
    oracle = build_oracle(Shape(), sharpness=1.5)
    whole = oracle.generate(PROMPT, RecordedNoise(0), Settings(max_new_tokens=30, ignore_eos=True))
    end = whole.token_ids[17]
    ending = Oracle(Shape(eos_token_id=(end,)), oracle.model)
    run = ending.generate(PROMPT, RecordedNoise(0), Settings(max_new_tokens=30))
    assert run.token_ids == whole.token_ids[: whole.token_ids.index(end) + 1]
    assert run.finish_reason == "stop"


def test_margin_flags_what_rounding_could_turn():
    run = build_oracle(Shape(), sharpness=1.5).generate(PROMPT, RecordedNoise(0), Settings())
    record = run.passes[0]
    assert run.margin <= record.margin
    logits = record.logits.clone()
    best, second = logits[0].topk(2).indices
    logits[0, second] = logits[0, best] - BORDER
    assert dataclasses.replace(record, logits=logits).margin < BORDER


def test_tied_experts_are_tied_and_starved_experts_starve():
    """Ties at the border of the top-k occur, and no token ever reaches a starved expert."""
    chosen: list[torch.Tensor] = []

    def keep(router: torch.nn.Module, inputs: object, outputs: tuple[torch.Tensor, ...]) -> None:
        best = outputs[0].topk(4, dim=-1).values
        chosen.append(torch.stack([best[:, 2] == best[:, 3], (outputs[2] >= 8).any(-1)]))

    shape = Shape(num_experts=12, top_k_experts=3)
    for weights in ({"tied_experts": True}, {"unused_experts": 4}):
        chosen.clear()
        oracle = build_oracle(shape, **weights)
        for layer in oracle.model.model.decoder.layers:
            layer.router.register_forward_hook(keep)
        _, cache = oracle.encode(range(40))
        logits = oracle.denoise_logits(torch.arange(12), cache)
        tied, starved = torch.cat(chosen, dim=1)
        assert logits.isfinite().all()
        if "tied_experts" in weights:
            assert tied.all()
        else:
            assert not starved.any()


def test_encoding_appends_and_denoising_does_not():
    oracle = build_oracle(Shape())
    whole, _ = oracle.encode(range(30))
    first, cache = oracle.encode(range(11))
    oracle.denoise_logits(torch.arange(12), cache)
    kept = clone_cache(cache)
    second, _ = oracle.encode(range(11, 30), cache)
    torch.testing.assert_close(torch.cat([first, second]), whole, rtol=0, atol=1e-5)
    assert (kept.get_seq_length(), cache.get_seq_length()) == (11, 30)


def test_ways_of_saving(tmp_path):
    """Every way of writing a checkpoint holds the same model."""
    oracle = build_oracle(Shape(layers="sfss"), seed=2)
    ways = {
        "plain": {},
        "release": {"spelling": "release"},
        "sharded": {"shard_size": "40KB"},
        "text": {"vision": False},
        "copies": {"encoder_copies": True, "shard_size": "40KB"},
    }
    canvas = torch.arange(12)
    expected = oracle.denoise_logits(canvas, oracle.encode(range(20))[1])
    for name, options in ways.items():
        oracle.save(tmp_path / name, **options)
        loaded = Oracle.load(tmp_path / name, oracle.shape)
        logits = loaded.denoise_logits(canvas, loaded.encode(range(20))[1])
        torch.testing.assert_close(logits, expected, rtol=0, atol=3e-5, msg=name)
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert not any("vision" in name for name in stored_names(tmp_path / "text"))
    assert "model.encoder.language_model.layers.0.mlp.up_proj.weight" in stored_names(tmp_path / "copies")
    assert "global_head_dim" in (tmp_path / "release" / "config.json").read_text()

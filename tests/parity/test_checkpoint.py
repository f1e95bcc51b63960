"""Checkpoint folders, both ways: Scumble reads what `transformers` writes, and `transformers` what Scumble writes.

"The same model" means: hidden states and logits within the tolerance of `test_model.py` between the two programs, and
weights that are equal to the bit between two loads by the same program.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import safetensors.torch
import torch

from oracle import DECODER, ENCODER_TEXT, VISION, Oracle, RecordedNoise, Settings, Shape, build_oracle, stored_names
from scumble import LLM, CheckpointError, GenerationConfig
from scumble.checkpoint import load_checkpoint, save_checkpoint
from scumble.config import ModelConfig
from scumble.model import Transformer

TOLERANCE = 1e-4
SHAPE = Shape(layers="sfss", eos_token_id=(1, 88, 50))  # the last layer is forced to full attention
PROMPT = [5, 17, 40, 3, 77, 8, 21, 60, 33, 12, 9]


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return build_oracle(SHAPE, seed=6)


Numbers = tuple[torch.Tensor, torch.Tensor]


def numbers_of(model: Oracle | Transformer) -> Numbers:
    """Hidden states [n, D] of an encode and logits [L, V] of a self-conditioned denoise, from either program."""
    canvas = torch.arange(SHAPE.canvas_length) + 20
    if isinstance(model, Oracle):
        hidden, cache = model.encode(PROMPT)
    else:
        cache = model.new_cache()
        hidden = model.encode(torch.tensor(PROMPT), cache)
    previous = model.denoise_logits(canvas, cache) / 0.6
    return hidden, model.denoise_logits(canvas.flip(0), cache, previous)


def assert_close(ours: Numbers, theirs: Numbers) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max().item() <= TOLERANCE


# --- what transformers writes ---------------------------------------------------------------------------------------

WAYS = {
    "as transformers writes": {},
    "release's config spelling": {"spelling": "release"},
    "sharded": {"shard_size": "40KB"},
    "text only": {"vision": False},
    "tied encoder copies": {"encoder_copies": True},
    "everything at once": {"spelling": "release", "shard_size": "40KB", "encoder_copies": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_reads(oracle: Oracle, tmp_path: Path, way: str):
    folder = oracle.save(tmp_path, **WAYS[way])
    assert_close(numbers_of(load_checkpoint(folder, dtype=torch.float32)), numbers_of(oracle))


def unpad(folder: Path) -> None:
    """Write the keys of per_layer_config without the zeros that `transformers` puts in front of them."""
    raw = json.loads((folder / "config.json").read_text())
    layers = raw["text_config"]["per_layer_config"]
    raw["text_config"]["per_layer_config"] = {str(int(key)): value for key, value in layers.items()}
    (folder / "config.json").write_text(json.dumps(raw))


@torch.no_grad()
def calm(oracle: Oracle) -> None:
    """Let each layer add little: a hundred random layers would turn the last bit of a number into another model."""
    encoder, decoder = oracle.model.model.encoder.language_model, oracle.model.model.decoder
    for layer in decoder.layers:
        layer.post_attention_layernorm.weight.mul_(0.2)
        layer.post_feedforward_layernorm.weight.mul_(0.2)
    for layer in (*decoder.layers, *encoder.layers):
        layer.layer_scalar.pow_(0.1)


@pytest.mark.parametrize("count", [10, 11, 12, 30, 101])
def test_reads_any_number_of_layers(tmp_path: Path, count: int):
    """`transformers` pads the keys of per_layer_config to one width: eleven layers end with "09" and "10"."""
    shape = Shape(layers="".join("f" if (i + 1) % 6 == 0 else "s" for i in range(count)), hidden_size=32)
    oracle = build_oracle(shape, seed=count)
    calm(oracle)
    folder = oracle.save(tmp_path)
    keys = json.loads((folder / "config.json").read_text())["text_config"]["per_layer_config"]
    assert {len(key) for key in keys} == {len(str(count - 1))}  # what this test is about
    padded = load_checkpoint(folder, dtype=torch.float32)
    assert [layer.head_dim for layer in padded.config.layers] == [
        16 if k == "f" else 8 for k in shape.layers[:-1] + "f"
    ]
    assert_close(numbers_of(padded), numbers_of(oracle))
    unpad(folder)
    assert load_checkpoint(folder).config == padded.config


def test_both_spellings_are_the_same_config(oracle: Oracle, tmp_path: Path):
    """`global_head_dim` and `num_global_key_value_heads`, or `per_layer_config`; the last layer forced or not yet."""
    written = load_checkpoint(oracle.save(tmp_path / "t")).config
    released = load_checkpoint(oracle.save(tmp_path / "r", spelling="release")).config
    assert "per_layer_config" in (tmp_path / "t" / "config.json").read_text()
    assert json.loads((tmp_path / "r" / "config.json").read_text())["text_config"]["layer_types"] == SHAPE.layer_types
    assert written == released
    assert [layer.kind for layer in released.layers][-1] == "full_attention"
    assert released.eos_token_ids == (1, 88, 50)


def test_defaults_left_out_of_config_json_are_the_class_defaults(tmp_path: Path):
    """`transformers` leaves out what equals a default of its config class, so each default has to be the same one."""
    shape = Shape(canvas_length=256, sliding_window=512, eos_token_id=1)
    oracle = build_oracle(shape)
    folder = oracle.save(tmp_path)
    raw = json.loads((folder / "config.json").read_text())
    defaults = type(oracle.model.config.text_config)(num_experts=1, top_k_experts=1, moe_intermediate_size=1).to_dict()
    for name, value in defaults.items():
        if raw["text_config"].get(name, ...) == value and name != "model_type":
            del raw["text_config"][name]
    assert "sliding_window" not in raw["text_config"]
    raw.pop("canvas_length", None)
    full = load_checkpoint(folder).config
    (folder / "config.json").write_text(json.dumps(raw))
    assert load_checkpoint(folder).config == full


def test_text_only_load_says_what_it_left_out(oracle: Oracle, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = oracle.save(tmp_path / "whole")
    vision = [name for name in stored_names(folder) if name.startswith(VISION)]
    with caplog.at_level(logging.INFO, logger="scumble"):
        report = load_checkpoint(folder).load_report
    assert report.vision_tensors == len(vision)
    assert report.vision_bytes > 0
    assert "vision" in caplog.text
    assert (report.unknown, report.assumed, report.tied_copies) == ((), (), 0)

    caplog.clear()
    with caplog.at_level(logging.INFO, logger="scumble"):
        report = load_checkpoint(oracle.save(tmp_path / "text", vision=False)).load_report
    assert report.vision_tensors == 0
    assert "vision" not in caplog.text


def test_tied_copies_are_counted_and_not_kept(oracle: Oracle, tmp_path: Path):
    plain = load_checkpoint(oracle.save(tmp_path / "plain"))
    folder = oracle.save(tmp_path / "copies", encoder_copies=True)
    copies = load_checkpoint(folder)
    stored = {name for name in stored_names(folder) if name.startswith(ENCODER_TEXT) and "layer_scalar" not in name}
    assert copies.load_report.tied_copies == len(stored) > 0
    assert copies.load_report.unknown == ()
    assert copies.load_report.weight_bytes == plain.load_report.weight_bytes


def add_tensor(folder: Path, key: str, change) -> None:
    """Store a changed copy of the weight that this key is tied to."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tied_to = DECODER + ("embed_tokens.weight" if key == "lm_head.weight" else key.removeprefix(ENCODER_TEXT))
    tensors[key] = change(tensors[tied_to].clone())
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def nudged(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[-1] += 0.5
    return tensor


COPIES = [
    "lm_head.weight",
    ENCODER_TEXT + "embed_tokens.weight",
    ENCODER_TEXT + "norm.weight",
    ENCODER_TEXT + "layers.1.self_attn.q_proj.weight",
    ENCODER_TEXT + "layers.2.experts.gate_up_proj",
    ENCODER_TEXT + "layers.3.router.per_expert_scale",
]


@pytest.mark.parametrize("key", COPIES)
def test_a_tied_copy_that_differs_is_refused_by_name(oracle: Oracle, tmp_path: Path, key: str):
    """`transformers` keeps both and computes with both, so whichever Scumble took, its logits would be others."""
    folder = oracle.save(tmp_path)
    add_tensor(folder, key, lambda tensor: tensor)
    assert load_checkpoint(folder).load_report.tied_copies == 1
    assert_close(numbers_of(load_checkpoint(folder)), numbers_of(oracle))
    add_tensor(folder, key, lambda tensor: tensor * torch.linspace(0.5, 1.5, tensor.shape[-1]))
    theirs = zip(numbers_of(Oracle.load(folder, SHAPE)), numbers_of(oracle), strict=True)
    assert max((one - other).abs().max() for one, other in theirs) > TOLERANCE
    add_tensor(folder, key, nudged)  # one number of all, the last
    for dtype in (None, torch.float32, torch.bfloat16, "int8"):
        with pytest.raises(CheckpointError, match=r"must equal .*, to which it is tied, and differs") as caught:
            load_checkpoint(folder, dtype)
        assert key in str(caught.value)


def test_a_tied_copy_is_compared_in_the_format_that_is_loaded(oracle: Oracle, tmp_path: Path):
    """As in `transformers`, which converts first: a bfloat16 copy of a float32 weight equals it in bfloat16 only."""
    folder = oracle.save(tmp_path)
    add_tensor(folder, "lm_head.weight", lambda tensor: tensor.to(torch.bfloat16))
    assert load_checkpoint(folder, torch.bfloat16).load_report.tied_copies == 1
    with pytest.raises(CheckpointError, match=r"lm_head\.weight must equal"):
        load_checkpoint(folder, torch.float32)


def test_a_tied_copy_of_another_shape_is_refused(oracle: Oracle, tmp_path: Path):
    folder = oracle.save(tmp_path)
    add_tensor(folder, "lm_head.weight", lambda tensor: tensor[:-1])
    with pytest.raises(CheckpointError, match=r"lm_head\.weight must equal"):
        load_checkpoint(folder)


def test_encoder_copies_may_stand_in_for_the_decoders(oracle: Oracle, tmp_path: Path):
    """A file that stores the tied weights only under the encoder's names holds the same model."""
    folder = oracle.save(tmp_path, encoder_copies=True)
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if not (name.startswith(DECODER) and ENCODER_TEXT + name.removeprefix(DECODER) in tensors)
        or name.endswith("layer_scalar")
    }
    assert len(kept) < len(tensors)
    safetensors.torch.save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert_close(numbers_of(load_checkpoint(folder)), numbers_of(oracle))


def test_generation_config_with_values(oracle: Oracle, tmp_path: Path):
    """What `transformers` stores as defaults of a checkpoint is what an empty `GenerationConfig` means."""
    folder = oracle.save(tmp_path)
    stored = {
        "max_new_tokens": 17,
        "max_denoising_steps": 5,
        "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.7},
        "t_min": 0.3,
        "t_max": 0.9,
        "stability_threshold": 2,
        "confidence_threshold": None,
    }
    (folder / "generation_config.json").write_text(json.dumps(stored))
    settings = Settings(17, 5, 0.7, 0.3, 0.9, 2, 0.005)  # the release's value where the file has null
    llm = LLM.load(folder, dtype="float32")
    noise = RecordedNoise(1)
    implied = llm.generate_ids(PROMPT, GenerationConfig(), noise=noise)
    spelled_out = llm.generate_ids(PROMPT, GenerationConfig(**settings.as_dict()), noise=noise)
    assert implied.token_ids == spelled_out.token_ids
    assert list(implied.token_ids) == oracle.generate(PROMPT, noise, settings).token_ids


def test_end_ids_of_generation_config_decide(oracle: Oracle, tmp_path: Path):
    """`transformers` ends at the ids in generation_config.json; config.json may name fewer (`<turn|>` missing, say)."""
    folder = oracle.save(tmp_path, spelling="release")
    config = json.loads((folder / "config.json").read_text())
    config["eos_token_id"] = config["text_config"]["eos_token_id"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 66, 50]}))
    assert Oracle.load(folder, SHAPE).model.generation_config.eos_token_id == [1, 66, 50]
    assert load_checkpoint(folder).config.eos_token_ids == (1, 66, 50)


# --- what Scumble writes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["as transformers writes", "everything at once"])
@pytest.mark.parametrize("shard_bytes", [None, 40_000], ids=["one file", "shards"])
def test_transformers_reads_what_is_saved(oracle: Oracle, tmp_path: Path, way: str, shard_bytes: int | None):
    """The saved folder has no vision weights: `transformers` starts a random vision tower, which text does not use."""
    loaded = load_checkpoint(oracle.save(tmp_path / "theirs", **WAYS[way]), dtype=torch.float32)
    folder = tmp_path / "ours"
    save_checkpoint(loaded, folder, **({} if shard_bytes is None else {"shard_bytes": shard_bytes}))
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shard_bytes is not None)
    assert not any(name.startswith(VISION) for name in stored_names(folder))

    theirs, ours = Oracle.load(folder, SHAPE), load_checkpoint(folder, dtype=torch.float32)
    assert_close(numbers_of(theirs), numbers_of(oracle))
    assert_close(numbers_of(ours), numbers_of(theirs))
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert ours.config == loaded.config


def test_layer_scalars_of_both_modes_survive(oracle: Oracle, tmp_path: Path):
    save_checkpoint(load_checkpoint(oracle.save(tmp_path / "theirs")), tmp_path / "ours")
    back = Oracle.load(tmp_path / "ours", SHAPE).model.model
    original = oracle.model.model
    for index in range(len(SHAPE.layers)):
        encode = back.encoder.language_model.layers[index].layer_scalar
        denoise = back.decoder.layers[index].layer_scalar
        assert encode == original.encoder.language_model.layers[index].layer_scalar
        assert denoise == original.decoder.layers[index].layer_scalar
        assert encode != denoise


def test_weights_survive_to_the_bit(oracle: Oracle, tmp_path: Path):
    """Names, shapes and bits of all text weights; nothing added, nothing lost."""
    theirs, ours = oracle.save(tmp_path / "theirs", vision=False), tmp_path / "ours"
    save_checkpoint(load_checkpoint(theirs), ours)
    before = safetensors.torch.load_file(theirs / "model.safetensors")
    after = safetensors.torch.load_file(ours / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_bfloat16_is_saved_as_bfloat16(tmp_path: Path):
    oracle = build_oracle(SHAPE, seed=6, representable_in=torch.bfloat16)
    model = load_checkpoint(oracle.save(tmp_path / "theirs"), dtype=torch.bfloat16)
    save_checkpoint(model, tmp_path / "ours")
    stored = safetensors.torch.load_file(tmp_path / "ours" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert_close(numbers_of(Oracle.load(tmp_path / "ours", SHAPE)), numbers_of(oracle))  # nothing was rounded away
    assert_close(numbers_of(load_checkpoint(tmp_path / "ours", dtype=torch.float32)), numbers_of(oracle))


def test_transformers_reads_the_saved_generation_config(oracle: Oracle, tmp_path: Path):
    model = load_checkpoint(oracle.save(tmp_path / "theirs"))
    values = {
        "max_new_tokens": 40,
        "max_denoising_steps": 7,
        "entropy_bound": 0.3,
        "t_min": 0.2,
        "t_max": 0.6,
        "stability_threshold": 2,
        "confidence_threshold": 0.01,
    }
    save_checkpoint(model, tmp_path / "ours", generation_config=values)
    theirs = Oracle.load(tmp_path / "ours", SHAPE).model.generation_config
    assert theirs.sampler_config.entropy_bound == values.pop("entropy_bound")
    assert {name: getattr(theirs, name) for name in values} == values
    assert theirs.eos_token_id == [1, 88, 50]


def test_transformers_reads_a_model_born_here(oracle: Oracle, tmp_path: Path):
    """A model that never was a `transformers` checkpoint, with random weights: nothing to copy config fields from."""
    loaded = load_checkpoint(oracle.save(tmp_path / "theirs")).config
    fields = {name: value for name, value in vars(loaded).items() if name != "source"}
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**fields))
    with torch.no_grad():
        for weight in model.state_dict().values():
            weight.normal_(std=0.1).add_(float(weight.ndim == 1))
    model.eval()
    save_checkpoint(model, tmp_path / "ours")
    assert_close(numbers_of(model), numbers_of(Oracle.load(tmp_path / "ours", SHAPE)))

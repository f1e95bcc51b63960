"""config.json: both spellings, defaults, end ids from either file, and every field out of range."""

import json
import math

import pytest

from scumble import CheckpointError
from scumble.checkpoint import load_config
from scumble.config import LayerConfig, Rope, parse_model_config, write_model_config
from tiny import FULL, SLIDING, tiny_config


def raw_config(**text) -> dict:
    raw = write_model_config(tiny_config(), "float32")
    return raw | {"text_config": raw["text_config"] | text}


def refusal(raw: dict) -> str:
    with pytest.raises(CheckpointError) as caught:
        parse_model_config(raw)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return str(caught.value)


def test_what_is_written_reads_back_equal():
    for config in (
        tiny_config(),
        tiny_config(eos_token_ids=(1, 5)),
        tiny_config(eos_token_ids=()),
        tiny_config(layers=(FULL,)),
        tiny_config(layers=(LayerConfig("sliding_attention", 4, 1), SLIDING, FULL)),  # no two alike: per layer
        tiny_config(full_rope=Rope("proportional", 5e5, 0.5), sliding_rope=Rope("default", 1e3)),
    ):
        assert parse_model_config(json.loads(json.dumps(write_model_config(config, "float32")))) == config


def test_both_spellings_of_layer_sizes_mean_the_same():
    released = raw_config()
    text = dict(released["text_config"])
    assert text.pop("global_head_dim") == 16
    assert text.pop("num_global_key_value_heads") == 1
    for key in ("2", "02", "002"):
        text["per_layer_config"] = {key: {"head_dim": 16, "num_key_value_heads": 1}}
        assert parse_model_config(released | {"text_config": text}) == parse_model_config(released)


def test_what_a_file_leaves_out_has_the_class_default():
    raw = raw_config()
    for name in ("final_logit_softcapping", "rms_norm_eps", "bos_token_id", "rope_parameters"):
        del raw["text_config"][name]
    del raw["canvas_length"]
    config = parse_model_config(raw)
    assert (config.final_logit_softcapping, config.rms_norm_eps, config.canvas_length) == (30.0, 1e-6, 256)
    assert config.full_rope == Rope("proportional", 1e6, 0.25)


WHOLE = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_experts", "top_k_experts",
         "moe_intermediate_size", "sliding_window", "max_position_embeddings", "num_hidden_layers", "head_dim",
         "num_key_value_heads", "global_head_dim")  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [0, -1, 1.5, "8", None, True, [8], {}, 2**63, 10**30, math.nan])
def test_sizes_are_whole_numbers_in_range(name, value):
    message = refusal(raw_config(**{name: value}))
    assert "found" in message
    assert name.replace("global_", "") in message or "num_hidden_layers" in message


@pytest.mark.parametrize("value", [0, -1, 2**17, "256", None, True])
def test_canvas_length(value):
    assert "canvas_length must be a whole number in 1 … 65536" in refusal(raw_config() | {"canvas_length": value})


@pytest.mark.parametrize("name", ["rms_norm_eps", "final_logit_softcapping"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "1", None, True, 10**400, []])
def test_numbers_are_finite_and_positive(name, value):
    assert f"{name} must be a finite number > 0" in refusal(raw_config(**{name: value}))


@pytest.mark.parametrize("value", [97, -1, "1", 1.0, True, [1, 97], [None], [[1]], {}, 10**30])
def test_end_ids_lie_in_the_vocabulary(value):
    assert "eos_token_id must be a whole number in 0 … 96" in refusal(raw_config() | {"eos_token_id": value})


@pytest.mark.parametrize("name", ["bos_token_id", "pad_token_id"])
@pytest.mark.parametrize("value", [-1, "2", 1.5, True, [2]])
def test_other_ids_are_ids(name, value):
    assert f"{name} must be a whole number" in refusal(raw_config(**{name: value}))


@pytest.mark.parametrize(
    ("rope", "says"),
    [
        ({"rope_type": "yarn"}, "rope_type must be"),
        ({"rope_type": ["default"]}, "rope_type must be"),
        ({"rope_theta": 0}, "rope_theta must be"),
        ({"rope_theta": math.nan}, "rope_theta must be"),
        ({"rope_theta": 10**400}, "rope_theta must be"),
        ({"rope_theta": "1e4"}, "rope_theta must be"),
        ({"rope_type": "proportional", "partial_rotary_factor": 1.5}, "partial_rotary_factor must lie in 0 … 1"),
        ({"rope_type": "proportional", "partial_rotary_factor": math.nan}, "partial_rotary_factor must lie in 0 … 1"),
        ({"rope_type": "proportional", "partial_rotary_factor": "x"}, "partial_rotary_factor must lie in 0 … 1"),
        ({"rope_type": "proportional", "factor": 8.0}, "rope factor must be 1"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1"),
        ([], "full_attention must be an object"),
        ("x", "full_attention must be an object"),
    ],
)
def test_rope_parameters(rope, says):
    assert says in refusal(raw_config(rope_parameters={"full_attention": rope}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"top_k_experts": 5}, "top_k_experts must be ≤ num_experts (4), found 5"),
        ({"num_key_value_heads": 3}, "num_key_value_heads must divide num_attention_heads (4), found 3"),
        ({"head_dim": 7}, "layer 0: head_dim must be even, found 7"),
        ({"layer_types": ["sliding_attention"]}, "layer_types must name 3 layers, found 1"),
        ({"layer_types": "full"}, "layer_types must name 3 layers, found 'full'"),
        ({"layer_types": ["linear", "linear", "linear"]}, "layer 0: layer type must be sliding_attention or full_"),
        ({"layer_types": [{}, {}, {}]}, "layer type must be"),
        ({"hidden_activation": "relu"}, "hidden_activation must be 'gelu_pytorch_tanh', found 'relu'"),
        ({"attention_bias": True}, "attention_bias must be false"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings must be true"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention must be null or 'vision'"),
        ({"rope_parameters": [1]}, "rope_parameters must be an object"),
        ({"per_layer_config": [1]}, "per_layer_config must be an object"),
        ({"per_layer_config": {"0": 5}}, "0 must be an object"),
        ({"per_layer_config": {"0": {"head_dim": "8"}}}, "layer 0: head_dim must be a whole number"),
        ({"per_layer_config": {"3": {}}}, "must have layer numbers 0 … 2 as keys, found '3'"),
        ({"per_layer_config": {"-1": {}}}, "must have layer numbers 0 … 2 as keys, found '-1'"),
        ({"per_layer_config": {"": {}}}, "must have layer numbers 0 … 2 as keys, found ''"),
        ({"per_layer_config": {"full_attention": {}}}, "must have layer numbers 0 … 2 as keys, found 'full_attention'"),
        ({"per_layer_config": {"9" * 5000: {}}}, "must have layer numbers 0 … 2 as keys, found '9999"),
        ({"per_layer_config": {"²": {}}}, "must have layer numbers 0 … 2 as keys, found '²'"),
        ({"per_layer_config": {"0": {"head_dim": 8}, "00": {"head_dim": 4}}}, "says two things about layer 0"),
        ({"per_layer_config": {"1": {"sliding_window": 3}}}, "found sliding_window 3 for layer 1"),
        ({"per_layer_config": {"01": {"skip": ["mlp"]}}}, "found skip ['mlp'] for layer 1"),
    ],
)
def test_what_this_engine_cannot_run(changes, says):
    assert says in refusal(raw_config(**changes))


@pytest.mark.parametrize("value", [5, "x", [1]])
def test_text_config_is_an_object(value):
    assert "text_config must be an object" in refusal({"model_type": "diffusion_gemma", "text_config": value})


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        (5, None, (5,)),
        ([5, 6], None, (5, 6)),
        ("missing", None, (1,)),  # the class default
        ("missing", {"eos_token_id": [7, 8]}, (7, 8)),
        (5, {"eos_token_id": [7, 8]}, (7, 8)),  # as in `transformers`: generation_config.json decides
        (None, {"eos_token_id": 9}, (9,)),
        (5, {"eos_token_id": None}, (5,)),
        (5, {}, (5,)),
        (None, None, ()),
    ],
)
def test_end_ids_from_either_file(tmp_path, config, generation, expected):
    raw = raw_config()
    raw["text_config"].pop("eos_token_id")
    raw.pop("eos_token_id")
    if config != "missing":
        raw["eos_token_id"] = config
    (tmp_path / "config.json").write_text(json.dumps(raw))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert load_config(tmp_path).eos_token_ids == expected

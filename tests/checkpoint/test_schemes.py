"""Folders that other tools quantized load as the numbers that those tools mean by them; what lies is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import foreign
from foreign import (
    COMPRESSED,
    Foreign,
    by_default,
    change_json,
    compressed_tensors,
    experts_only,
    linears,
    write_foreign,
)
from scumble import CheckpointError
from scumble.checkpoint import load_checkpoint
from scumble.checkpoint.schemes import bits
from scumble.checkpoint.schemes.patterns import matcher

OTHERS: dict[str, tuple[Callable[[], tuple[foreign.Packer, dict[str, Any]]], Callable[[str], bool]]] = {
    "ModelOpt NVFP4, experts only": (foreign.modelopt_nvfp4, experts_only),
    "ModelOpt FP8": (foreign.modelopt_fp8, linears),
    "GPTQ": (foreign.gptq, linears),
    "GPTQ, second format": (lambda: foreign.gptq(version="gptq_v2"), linears),
    "GPTQ, ordered by activation": (lambda: foreign.gptq(ordered=True), linears),
    "AutoRound": (foreign.auto_round, lambda module: linears(module) and module[21:] != "0.self_attn.q_proj"),
    "AWQ": (foreign.awq, linears),
}


def assert_means(written: Foreign) -> None:
    """What is loaded in float32 is what the numbers mean, up to the last bit or two."""
    loaded = load_checkpoint(written.folder, torch.float32).state_dict()
    compared = 0
    for key, meant in written.meant.items():
        if key.startswith("model.decoder."):
            torch.testing.assert_close(loaded[key.removeprefix("model.decoder.")], meant, rtol=2e-6, atol=0, msg=key)
            compared += 1
    assert compared > 40


@pytest.fixture
def compressed(tmp_path: Path) -> Callable[[str], Foreign]:
    def write(name: str) -> Foreign:
        form, weights = COMPRESSED[name]
        return write_foreign(tmp_path, *compressed_tensors(form, **weights), by_default)

    return write


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_tensors_folders_load_as_the_package_unpacks_them(compressed, name):
    assert_means(compressed(name))


@pytest.mark.parametrize("name", OTHERS)
def test_other_tools_folders_load_as_their_numbers_mean(tmp_path, name):
    make, quantized = OTHERS[name]
    assert_means(write_foreign(tmp_path, *make(), quantized))


def test_modelopts_own_file_serves_where_config_json_says_nothing(tmp_path):
    pack, settings = foreign.modelopt_nvfp4()
    written = write_foreign(tmp_path, pack, None, experts_only)
    own = {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": settings["ignore"]}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"producer": {"name": "modelopt"}, "quantization": own}))
    assert_means(written)


def test_mixed_precision_groups_are_matched_by_module(tmp_path):
    """int4 for the experts, fp8 for attention, the dense layers as they are."""
    pack4, settings4 = compressed_tensors("pack-quantized", **COMPRESSED["int4 group 32"][1])
    pack8, settings8 = compressed_tensors("float-quantized", **COMPRESSED["fp8 channel"][1])
    groups = {
        "experts": settings4["config_groups"]["group_0"] | {"targets": ["re:.*experts.*"]},
        "attention": settings8["config_groups"]["group_0"] | {"targets": [r"re:.*self_attn\.[qkvo]_proj"]},
    }
    settings = settings4 | {"format": "mixed-precision", "config_groups": groups}
    turn = iter(())

    def pack(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        return next(turn)(weight)

    names: list[str] = []

    def quantized(module: str) -> bool:
        nonlocal turn
        names.append(module)
        turn = iter([pack4 if "experts" in module else pack8])
        return "experts" in module or "self_attn" in module

    assert_means(write_foreign(tmp_path, pack, settings, quantized))


def report_of(folder, **how):
    report = load_checkpoint(folder, **how).load_report
    assert report is not None
    return report


def test_the_report_names_the_schemes_and_what_was_not_needed(tmp_path):
    written = write_foreign(tmp_path, *foreign.modelopt_nvfp4(), experts_only)
    lines = report_of(written.folder, dtype=torch.float32).lines()
    assert "stored in few bits, dequantized: 24 × nvfp4, groups of 16" in lines
    assert "not needed: 24 scales of activations" in lines
    lines = report_of(written.folder).lines()
    assert "weights in few bits: 24 × nvfp4, groups of 16 → four bits, the same numbers" in lines
    assert "not needed: 24 scales of activations" in lines


def test_key_and_value_scales_are_not_needed(compressed):
    """A folder with a kv_cache_scheme runs with a full cache, or with scales of our own, a token and head each."""
    folder = compressed("fp8 channel").folder
    edit(folder, lambda tensors: tensors.update({"model.decoder.layers.0.self_attn.k_scale": torch.tensor(0.1)}))
    report = report_of(folder)
    assert (report.unused_scales, report.cache_scales) == (0, 1)
    assert any("1 scales of the KV cache; cache_dtype int8 or fp8" in line for line in report.lines())
    assert load_checkpoint(folder, cache_dtype="fp8").new_cache().layers[0].keys.dtype == torch.float8_e4m3fn


# --- what lies ------------------------------------------------------------------------------------------------------

UP = "model.decoder.layers.0.mlp.up_proj"


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def drop(key: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.pop(key)


def put(key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({key: change(tensors[key]).contiguous()})


DAMAGE = {
    "missing scale": (drop(f"{UP}.weight_scale"), f"{UP} (int4, groups of 32): weight_scale missing"),
    "missing numbers": (drop(f"{UP}.weight_packed"), f"{UP} (int4, groups of 32): weight_packed missing"),
    "a scale too few": (put(f"{UP}.weight_scale", lambda t: t[:, 1:]), "weight_scale must have shape [128, 2]"),
    "another format": (put(f"{UP}.weight_packed", lambda t: t.float()), "must be a matrix of I32, found F32"),
    "whole scales": (put(f"{UP}.weight_scale", lambda t: t.to(torch.int8)), "weight_scale must be one of F64"),
    "a lying shape": (put(f"{UP}.weight_shape", lambda t: t * 3), "weight_shape [384, 192] does not fit"),
    "zero points": (
        lambda tensors: tensors.update({f"{UP}.weight_zero_point": torch.zeros(16, 2, dtype=torch.int32)}),
        "weight_zero_point is there; quantization_config says symmetric",
    ),
    "scales that are not finite": (put(f"{UP}.weight_scale", lambda t: t * float("nan")), "must hold finite numbers"),
    "a missing expert": (
        drop("model.decoder.layers.1.experts.2.up_proj.weight_packed"), "experts.2.up_proj (int4, groups of 32): weight"
    ),
    "g_idx out of range": (
        lambda tensors: tensors.update({f"{UP}.weight_g_idx": torch.full((64,), 9, dtype=torch.int32)}),
        "must hold groups in 0 … 1, found 9 … 9",
    ),
    "another scheme's tensor": (
        lambda tensors: tensors.update({f"{UP}.qzeros": torch.zeros(1, 1, dtype=torch.int32)}), "does not belong to"
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_tensors_that_contradict_their_scheme_are_named(compressed, damage):
    change, message = DAMAGE[damage]
    folder = compressed("int4 group 32").folder
    edit(folder, change)
    assert message in refusal(folder)


def test_a_whole_expert_that_is_missing_is_named(compressed):
    folder = compressed("int4 group 32").folder
    edit(folder, lambda tensors: [tensors.pop(key) for key in list(tensors) if ".layers.1.experts.1.up_proj" in key])
    assert "experts lacks 1 of 12 experts' weights: 1.up_proj" in refusal(folder)


def change_group(folder: Path, **changes: Any) -> None:
    raw = json.loads((folder / "config.json").read_text())["quantization_config"]
    raw["config_groups"]["group_0"]["weights"] |= changes
    change_json(folder / "config.json", quantization_config=raw)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 48}, "groups of 48 do not divide 64 columns"),
        ({"group_size": 0}, "group_size must be a whole number in 1"),
        ({"num_bits": 3}, "of 3-bit int is not read"),
        ({"symmetric": False}, "weight_zero_point missing; quantization_config promises zero points"),
        ({"strategy": "token"}, "strategy must be tensor, channel, group or block, found 'token'"),
    ],
)
def test_a_configuration_that_lies_is_refused(compressed, changes, message):
    folder = compressed("int4 group 32").folder
    change_group(folder, **changes)
    assert message in refusal(folder)


def test_a_scheme_for_a_missing_module_leaves_the_others_without_one(compressed):
    folder = compressed("int4 group 32").folder
    raw = json.loads((folder / "config.json").read_text())["quantization_config"]
    raw["config_groups"]["group_0"]["targets"] = ["re:.*cross_attn.*"]
    change_json(folder / "config.json", quantization_config=raw)
    assert "is among the modules left as they are, but is stored in few bits" in refusal(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            "are quantized (bitsandbytes), which Scumble cannot read",
        ),
        ({"quant_method": "gptq", "bits": 3}, "gptq of 3 bits is not read"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "AWQ 'gemv' of 4 bits is not read"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo 'W4A8_AWQ' is not read"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "config_groups must name at least one group"),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": 1}}, "config group g must be an object"),
        ([1], "quantization_config must be an object"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(compressed, settings, message):
    folder = compressed("int4 group 32").folder
    change_json(folder / "config.json", quantization_config=settings)
    assert message in refusal(folder)


def test_a_regular_expression_that_is_none_is_refused(compressed):
    folder = compressed("int4 group 32").folder
    raw = json.loads((folder / "config.json").read_text())["quantization_config"]
    change_json(folder / "config.json", quantization_config=raw | {"ignore": ["re:("]})
    assert "is not a regular expression" in refusal(folder)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b",
        "(a|a)*b",
        "(?:.*x){30}",
        "(.*)\\1",
        "(?P<n>a)(?P=n)",
        ".*.*.*.*.*.*.*.*z",
        "a?" * 40 + "a" * 40,
        "(a|a)" * 40,
    ],
)
def test_patterns_that_may_take_for_ever_are_refused(compressed, pattern):
    folder = compressed("int4 group 32").folder
    raw = json.loads((folder / "config.json").read_text())["quantization_config"]
    change_json(folder / "config.json", quantization_config=raw | {"ignore": [f"re:{pattern}"]})
    assert "may take for ever" in (found := refusal(folder)) or "too many ways to match a name" in found


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        (".*self_attn.*", "model.decoder.layers.0.self_attn.q_proj"),
        (r".*layers\.(0|1|[2-9][0-9]*)\.mlp\.(gate|up|down)_proj", "model.decoder.layers.20.mlp.up_proj"),
        (r"model\.decoder\.layers\.[0-9]+\.experts\.[0-9]+\..*_proj$", "model.decoder.layers.3.experts.17.up_proj"),
        (r"(?!.*vision).*\.experts\..*", "model.decoder.layers.3.experts.17.up_proj"),
        (r".*[]()*+]?q_proj", "model.decoder.layers.0.self_attn.q_proj"),
    ],
)
def test_patterns_as_tools_write_them_are_matched(pattern, matches, tmp_path):
    found = matcher([pattern], tmp_path)
    assert found(matches)
    assert not found("model.encoder.vision_tower.patch")


@given(st.text(alphabet="ab().*+?|[]^{}2,\\$:=!<P>", max_size=24))
@settings(deadline=2000)
def test_no_pattern_takes_long(pattern):
    with suppress(CheckpointError):
        matcher([pattern], Path("config.json"))("ab" * 40)


def test_modules_left_as_they_are_may_not_be_in_few_bits(compressed):
    folder = compressed("int4 group 32").folder
    raw = json.loads((folder / "config.json").read_text())["quantization_config"]
    change_json(folder / "config.json", quantization_config=raw | {"ignore": ["re:.*mlp.*"]})
    assert "is among the modules left as they are, but is stored in few bits" in refusal(folder)


def test_few_bits_without_a_configuration_are_refused(compressed):
    folder = compressed("int4 group 32").folder
    change_json(folder / "config.json", quantization_config=None)
    assert "looks quantized, but no file of the folder says how" in refusal(folder)


def test_experts_stored_one_by_one_in_bfloat16_load(tmp_path):
    assert_means(write_foreign(tmp_path, lambda weight: ({"weight": weight}, weight.float()), None, lambda _: False))


@pytest.mark.parametrize("dtype", list(bits.NOT_FINITE))
def test_a_number_that_is_none_is_found_in_every_format(dtype):
    """Every pattern of a byte's or two bytes' format; of wider ones, patterns that differ in their upper bytes."""
    size = dtype.itemsize
    if size <= 2:
        whole = torch.arange(256**size).to({1: torch.uint8, 2: torch.int16}[size])
    else:
        whole = torch.arange(65536).to(bits.NOT_FINITE[dtype][0]) << 8 * (size - 2)
    values = whole.view(dtype)
    finite = (values.float() if size == 1 else values).isfinite()
    assert 0 < int((~finite).sum()) < len(values) / 2
    assert bits.all_finite(values[finite])
    assert not any(bits.all_finite(values[place][None]) for place in (~finite).nonzero()[:300, 0])

"""Damaged, missing, lying and dangerous checkpoint files: each is refused with one clear line."""

import contextlib
import json
import os
import pickle
import socket
import struct
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scumble import LLM, CheckpointError, InvalidRequest, ScumbleError, TemplateError, TokenizerError
from scumble.checkpoint import load_checkpoint, load_config, read_generation_config
from tiny import save_folder, tiny_model

KEY = "model.decoder.layers.0.mlp.gate_proj.weight"


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_folder(tmp_path / "checkpoint", tiny_model())


def refusal(path: Path, read=load_checkpoint) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


def rewrite_header(file: Path, change) -> None:
    """Apply `change` to the header object of a safetensors file, leaving its data as they are."""
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def rewrite_json(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def shards_of(folder: Path) -> Path:
    """Split the folder's one file into two shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    keys = sorted(tensors)
    halves = (keys[: len(keys) // 2], keys[len(keys) // 2 :])
    for name, half in zip(names, halves, strict=True):
        save_file({key: tensors[key] for key in half}, folder / name)
    weight_map = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    return folder


# --- files that are not there -----------------------------------------------------------------------------------------


def test_no_folder(tmp_path):
    assert "no such folder" in refusal(tmp_path / "nowhere")


def test_no_config(folder):
    (folder / "config.json").unlink()
    assert "no such file; a checkpoint folder needs a config.json" in refusal(folder)


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    assert "holds neither model.safetensors nor model.safetensors.index.json" in refusal(folder)


def test_a_file_instead_of_a_folder(folder):
    assert "is a file; give the checkpoint folder" in refusal(folder / "model.safetensors")


def test_a_folder_where_the_weights_should_be(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    assert "model.safetensors" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors", "hf_quant_config.json"])
@pytest.mark.parametrize("kind", ["named pipe", "device", "folder", "socket", "loop of links", "link to nothing"])
def test_what_is_no_file_is_refused_at_once(folder, name, kind):
    place = folder / name
    place.unlink(missing_ok=True)
    if kind == "named pipe":
        os.mkfifo(place)
    elif kind == "device":
        place.symlink_to("/dev/zero")
    elif kind == "folder":
        place.mkdir()
    elif kind == "socket":
        with contextlib.chdir(folder), socket.socket(socket.AF_UNIX) as listener:  # its path may not be long
            listener.bind(name)
    else:
        place.symlink_to(place if kind == "loop of links" else folder / "nothing")
    message = refusal(folder)
    assert name in message
    assert kind not in ("named pipe", "device", "folder", "socket") or f"is a {kind}, not a regular file" in message


def test_a_shard_that_is_a_pipe(folder):
    shards_of(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    os.mkfifo(folder / "model-00002-of-00002.safetensors")
    assert "is a named pipe, not a regular file" in refusal(folder)


def test_a_file_of_a_terabyte_is_refused_unread(folder):
    with (folder / "config.json").open("wb") as stream:
        stream.truncate(2**40)
    assert "1,099,511,627,776 bytes; a file of this kind may have" in refusal(folder)


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "loop"])
def test_a_path_that_cannot_be(tmp_path, path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot be opened" in refusal(tmp_path / path)


# --- pickles ----------------------------------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/this-pickle-was-opened"),))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "consolidated.ckpt", "weights.pkl"])
def test_pickles_are_refused_unopened(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    assert "pickle files are refused, because opening one can run any code" in refusal(folder)
    assert "pickle files are refused" in refusal(folder / name)
    assert not Path("/tmp/this-pickle-was-opened").exists()


def test_a_pickle_that_an_index_names_or_that_is_called_safetensors(folder):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    assert "not a whole safetensors file" in refusal(folder)
    (folder / "model.safetensors").unlink()
    (folder / "a.bin").write_bytes(pickle.dumps(Bomb()))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {KEY: "a.bin"}}))
    assert "pickle files are refused" in refusal(folder)
    assert not Path("/tmp/this-pickle-was-opened").exists()


# --- safetensors files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1, -1000])
def test_truncated(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    message = refusal(folder)
    assert "not a whole safetensors file" in message or "cannot be read" in message
    assert str(file) in message


def test_bytes_too_many(folder):
    with (folder / "model.safetensors").open("ab") as stream:
        stream.write(b"\0" * 16)
    assert "not a whole safetensors file" in refusal(folder)


@pytest.mark.parametrize("length", [0, 1, 7, 2**31, 2**63 - 1, 2**64 - 1])
def test_a_header_that_lies_about_its_length(folder, length):
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    assert "not a whole safetensors file" in refusal(folder)


@pytest.mark.parametrize("text", [b"[]", b"null", b"{", b'{"a": 5}', b'{"\xff": {}}', b'{"a": {"dtype": "F32"}}'])
def test_a_header_that_is_no_header(folder, text):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    assert "not a whole safetensors file" in refusal(folder)


def test_overlapping_tensors(folder):
    def overlap(header):
        first, second = [key for key in header if key != "__metadata__"][:2]
        begin, end = header[first]["data_offsets"]
        header[second] = {**header[first], "data_offsets": [begin, end]}

    rewrite_header(folder / "model.safetensors", overlap)
    assert "not a whole safetensors file" in refusal(folder)


@pytest.mark.parametrize("offsets", [[-4, 8], [8, 4], [0, 2**40], [0.5, 2], [None, 3], [0]])
def test_offsets_that_point_nowhere(folder, offsets):
    rewrite_header(folder / "model.safetensors", lambda header: header[KEY].update(data_offsets=offsets))
    assert "not a whole safetensors file" in refusal(folder)


def test_a_shape_that_does_not_fit_its_bytes(folder):
    rewrite_header(folder / "model.safetensors", lambda header: header[KEY].update(shape=[10**9, 10**9]))
    assert "not a whole safetensors file" in refusal(folder)


def edit_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_a_wrong_shape_is_named_with_expected_and_found(folder):
    edit_tensors(folder, lambda tensors: tensors.update({KEY: torch.zeros(3, 32)}))
    assert f"{KEY} has the wrong shape: expected [24, 32] by config.json, found [3, 32]" in refusal(folder)


def test_missing_keys_are_counted_and_named(folder):
    edit_tensors(folder, lambda tensors: [tensors.pop(KEY), tensors.pop("model.decoder.norm.weight")])
    message = refusal(folder)
    assert "2 of " in message
    assert "weights are missing" in message
    assert KEY in message
    assert "model.decoder.norm.weight" in message


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn])
def test_an_unexpected_number_format_is_named(folder, dtype):
    edit_tensors(folder, lambda tensors: tensors.update({KEY: torch.zeros(24, 32).to(dtype)}))
    message = refusal(folder)
    assert f"{KEY} has number format" in message
    assert "expected one of F64, F32, F16, BF16" in message


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named_where_rounding_would_hide_it(folder, form, bad):
    edit_tensors(folder, lambda tensors: tensors[KEY].view(-1)[3].fill_(bad))
    message = refusal(folder, lambda path: load_checkpoint(path, form))
    assert f"model.safetensors: {KEY} must hold finite numbers, found NaN or infinity" in message


# --- quantized weights ------------------------------------------------------------------------------------------------

SCHEMES = {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "something-of-tomorrow": {"quant_method": "something-of-tomorrow"},
    "quantization_config": {"strange": 1},
}


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("inside", [False, True], ids=["at the top", "in text_config"])
def test_a_quantized_folder_is_refused_by_its_scheme(folder, name, inside):
    raw = json.loads((folder / "config.json").read_text())
    (raw["text_config"] if inside else raw)["quantization_config"] = SCHEMES[name]
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "model.safetensors").unlink()  # it is said before the weights are looked for
    assert f"config.json: the weights are quantized ({name}), which Scumble cannot read" in refusal(folder)


def test_other_places_where_a_scheme_is_declared(folder):
    rewrite_json(folder / "config.json", quantization={"group_size": 64, "bits": 4})
    assert "quantized (MLX, bits 4, group_size 64)" in refusal(folder)
    rewrite_json(folder / "config.json", quantization=None)
    load_checkpoint(folder)
    declared = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "INT3", "kv_cache_quant_algo": "FP8"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(declared))
    assert "hf_quant_config.json: quant_algo 'INT3' is not read" in refusal(folder)


@pytest.mark.parametrize("nothing", [None, {}])
def test_an_empty_quantization_config_means_nothing(folder, nothing):
    rewrite_json(folder / "config.json", quantization_config=nothing)
    load_checkpoint(folder)


PART = "model.decoder.layers.0.mlp.gate_proj."


@pytest.mark.parametrize(
    "name",
    ["weight_scale", "weight_scale_inv", "weight_scale_2", "weight_global_scale", "input_scale", "weight_zero_point",
     "weight_packed", "weight_shape", "qweight", "qzeros", "scales", "biases", "g_idx", "weight.absmax", "SCB",
     "weight.quant_state.bitsandbytes__nf4", "weight_blocks", "weight_qdata", "weight._data", "codebooks"],
)  # fmt: skip
def test_a_scale_or_a_packed_weight_is_never_ignored(folder, name):
    edit_tensors(folder, lambda tensors: tensors.update({PART + name: torch.ones(3)}))
    message = refusal(folder)
    assert f"looks quantized, but no file of the folder says how: found '{PART + name}' (F32)" in message


def test_scales_outside_the_known_prefixes_and_numbers_of_other_formats(folder):
    edit_tensors(folder, lambda tensors: tensors.update({"layers.0.k_scale": torch.ones(1)}))
    assert "looks quantized" in refusal(folder)
    edit_tensors(
        folder, lambda tensors: [tensors.pop("layers.0.k_scale"), tensors.update({PART + "x": torch.ones(1).char()})]
    )
    assert f"looks quantized, but no file of the folder says how: found '{PART}x' (I8)" in refusal(folder)


def test_the_vision_tower_may_have_scales(folder):
    edit_tensors(folder, lambda tensors: tensors.update({"model.encoder.vision_tower.a.weight_scale": torch.ones(1)}))
    assert load_checkpoint(folder).load_report.vision_tensors == 1


@pytest.mark.parametrize("name", ["q_proj.bias", "q_proj.lora_A.weight", "q_proj.lora_B.default.weight"])
def test_adapters_and_biases_are_never_ignored(folder, name):
    key = "model.decoder.layers.0.self_attn." + name
    edit_tensors(folder, lambda tensors: tensors.update({key: torch.ones(3)}))
    assert f"found '{key}' (F32), which would change what the model computes" in refusal(folder)


# --- shards -----------------------------------------------------------------------------------------------------------


def test_shards_load_like_one_file(folder, tmp_path):
    whole = load_checkpoint(folder).state_dict()
    shards = load_checkpoint(shards_of(folder)).state_dict()
    assert all(torch.equal(whole[name], shards[name]) for name in whole)


def test_missing_shards_are_counted_and_named(folder):
    (shards_of(folder) / "model-00002-of-00002.safetensors").unlink()
    assert "1 of 2 shards are missing: model-00002-of-00002.safetensors" in refusal(folder)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", 5, None, ["x"]]
)
def test_an_index_may_not_point_outside_its_folder(folder, name):
    index = {"weight_map": {KEY: name}}
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "must name .safetensors files inside its own folder" in refusal(folder)


@pytest.mark.parametrize(
    "index", ["{}", '{"weight_map": {}}', '{"weight_map": ["a"]}', "[]", "nope", '{"weight_map": 5}']
)
def test_an_index_without_a_weight_map(folder, index):
    (shards_of(folder) / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in refusal(folder)


def test_a_key_in_two_shards(folder):
    shards_of(folder)
    first = load_file(folder / "model-00001-of-00002.safetensors")
    second = load_file(folder / "model-00002-of-00002.safetensors")
    key = next(iter(first))
    save_file({**second, key: first[key]}, folder / "model-00002-of-00002.safetensors")
    assert f"{key} is stored twice" in refusal(folder)


# --- JSON -------------------------------------------------------------------------------------------------------------

NOT_JSON = {
    "not UTF-8": b'{"model_type": "\xff\xfe"}',
    "cut off": b'{"model_type": ',
    "empty": b"",
    "a list": b"[1, 2]",
    "null": b"null",
    "nested too deep": b'{"a": ' * 100_000,
    "a number of 10,000 digits": b'{"a": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("content", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_json_that_is_none(folder, content):
    (folder / "config.json").write_bytes(content)
    assert "config.json" in refusal(folder)
    assert "config.json" in refusal(folder, load_config)


@pytest.mark.parametrize("kind", [None, "llama", "gemma4", 5, ["diffusion_gemma"], {}])
def test_an_unknown_model_type(folder, kind):
    rewrite_json(folder / "config.json", model_type=kind)
    assert f"{folder / 'config.json'}: model_type must be 'diffusion_gemma', found" in refusal(folder)


def test_absurd_sizes_are_refused_at_once_and_before_anything_is_allocated(folder):
    original = json.loads((folder / "config.json").read_text())
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_experts", "moe_intermediate_size", "head_dim"):  # fmt: skip
        for absurd in (10**12, 10**30):
            (folder / "config.json").write_text(
                json.dumps(original | {"text_config": original["text_config"] | {name: absurd}})
            )
            started = time.perf_counter()
            assert f"found {absurd}" in refusal(folder)
            assert time.perf_counter() - started < 1


def test_large_but_possible_sizes_meet_the_shapes_in_the_file_before_memory(folder):
    """Weights are planned without storage: 2¹⁷ wide and 1000 layers cost nothing until the file's shapes agree."""
    original = json.loads((folder / "config.json").read_text())
    text = original["text_config"] | {"hidden_size": 2**17, "vocab_size": 2**24, "num_experts": 2**14}
    (folder / "config.json").write_text(json.dumps(original | {"text_config": text}))
    assert "has the wrong shape: expected" in refusal(folder)


# --- generation_config.json -------------------------------------------------------------------------------------------


def test_nulls_in_generation_config_are_unset(folder):
    (folder / "generation_config.json").write_text(
        json.dumps({"max_new_tokens": None, "t_min": None, "sampler_config": None, "eos_token_id": None, "t_max": 0.7})
    )
    assert read_generation_config(folder) == {"t_max": 0.7}
    (folder / "generation_config.json").write_text(json.dumps({"sampler_config": {"entropy_bound": None}}))
    assert read_generation_config(folder) == {}


@pytest.mark.parametrize(
    "content",
    [{"max_new_tokens": "many"}, {"t_min": -1}, {"t_min": 0.9, "t_max": 0.1}, {"max_denoising_steps": 0},
     {"t_min": 0.9}, {"canvas_length": 9},
     {"sampler_config": []}, {"sampler_config": {"entropy_bound": "x"}}, {"confidence_threshold": [1]}],
)  # fmt: skip
def test_bad_values_in_generation_config_are_the_file_s_fault(folder, content):
    (folder / "generation_config.json").write_text(json.dumps(content))
    assert "generation_config.json" in refusal(folder, read_generation_config)
    assert "generation_config.json" in refusal(folder, LLM.load)


@pytest.mark.parametrize("eos", [97, -1, "x", [1, 97], {}])
def test_a_bad_end_id_is_blamed_on_the_file_that_holds_it(folder, eos):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    assert refusal(folder).startswith(f"{folder / 'generation_config.json'}: eos_token_id must be")
    rewrite_json(folder / "config.json", eos_token_id=eos)
    (folder / "generation_config.json").write_text("{}")
    assert refusal(folder).startswith(f"{folder / 'config.json'}: eos_token_id must be")


# --- tokenizer --------------------------------------------------------------------------------------------------------


def test_a_folder_without_tokenizer_works_on_ids_only(folder):
    llm = LLM.load(folder)
    with pytest.raises(TokenizerError, match=r"has no tokenizer; text needs one"):
        llm.generate("hello")


def test_a_tokenizer_larger_than_the_vocabulary(tmp_path):
    folder = save_folder(tmp_path / "t", tiny_model(), tokenizer=True)
    with pytest.raises(TokenizerError, match="tokens, the model only 97"):
        LLM.load(folder)


SMALL = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json"]
DEEP = b'{"chat_template": ' + b"[" * 900 + b"]" * 900 + b"}"  # Python's own parser takes this


def make_pipe(file: Path) -> None:
    file.unlink(missing_ok=True)
    os.mkfifo(file)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    "spoil",
    [
        make_pipe,
        lambda file: [file.unlink(missing_ok=True), file.mkdir()],
        lambda file: [file.unlink(missing_ok=True), file.symlink_to("/dev/zero")],
        lambda file: [file.unlink(missing_ok=True), file.symlink_to(file.name)],
        lambda file: [file.unlink(missing_ok=True), file.symlink_to("nothing")],
        lambda file: file.write_bytes(b"\xff\xfe{"),
        lambda file: file.write_bytes(DEEP if file.suffix == ".json" else b"\xff"),
        lambda file: file.write_bytes(b'{"a": ' * 100_000 if file.suffix == ".json" else b"\xff"),
        lambda file: os.truncate(file if file.exists() else file.write_bytes(b"") or file, 2**40),
    ],
    ids=["pipe", "folder", "device", "loop", "link to nothing", "not UTF-8", "deep", "deeper", "a terabyte"],
)
def test_small_files_are_refused_at_once_and_before_the_weights(tmp_path, monkeypatch, name, spoil):
    folder = save_folder(tmp_path / "t", tiny_model(vocab_size=320), tokenizer=True)
    LLM.load(folder)
    monkeypatch.setattr("scumble.llm.load_checkpoint", lambda *_: pytest.fail("weights were read"))
    spoil(folder / name)
    with pytest.raises(ScumbleError) as caught:
        LLM.load(folder)
    assert name in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("template", [{}, {"a": 1}, 5, [5], [{"name": "default"}], [{"name": [], "template": ""}],
                                      [{"name": 1, "template": "x"}, {"name": "y", "template": "x"}]])  # fmt: skip
def test_a_chat_template_of_a_strange_shape(tmp_path, template):
    folder = save_folder(tmp_path / "t", tiny_model(vocab_size=320), tokenizer=True)
    rewrite_json(folder / "tokenizer_config.json", chat_template=template)
    if template:
        with pytest.raises(TemplateError, match="chat_template in"):
            LLM.load(folder)
    else:
        LLM.load(folder)


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [5, b"x", ["x"], {}, 1.5])
def test_a_path_that_is_none(path):
    for load in (load_checkpoint, LLM.load):
        with pytest.raises(InvalidRequest, match="a checkpoint must be named by its path, a str or Path; found"):
            load(path)


@pytest.mark.parametrize(
    "dtype", ["nope", "", 5, torch.int8, torch.float8_e4m3fn, torch.bool, torch.complex64, ["int8"]]
)
def test_a_dtype_that_is_none(folder, dtype):
    with pytest.raises(InvalidRequest, match=r"dtype must be None, a floating torch.dtype or one of float32, bfloat16"):
        load_checkpoint(folder, dtype)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_dtype_by_its_name(folder, name):
    assert load_checkpoint(folder, name).dtype is getattr(torch, name)


def test_a_device_that_is_not_there(folder):
    with pytest.raises(InvalidRequest, match="and present; found 'abacus'"):
        load_checkpoint(folder, device="abacus")

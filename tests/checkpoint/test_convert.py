"""What `convert` writes loads here, and unpacks in the reference package, as the numbers that were meant."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from foreign import compressed_tensors, foreign_model, unpacked, write_foreign, write_gguf
from scumble import LLM, CheckpointError, GenerationConfig, InvalidRequest
from scumble.checkpoint import load_checkpoint
from scumble.checkpoint import pieces as module
from scumble.checkpoint.convert import FORMS, convert
from scumble.checkpoint.pack import packing, round_fp4
from scumble.formats.int4 import FP4
from scumble.formats.int4_weights import Int4Weight
from tiny import prompt, save_folder

ERROR = {"int4": 0.09, "int8": 0.01, "fp8": 0.03, "nvfp4": 0.11}  # relative, of normal numbers rounded to the nearest


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_folder(tmp_path / "source", foreign_model(vocab_size=300), tokenizer=True, max_new_tokens=33)


def run(source: Path, out: Path, form: str = "int4", **options) -> Path:
    list(convert(source, out, form, **options))
    return out


def logits(model) -> torch.Tensor:
    cache = model.new_cache()
    model.encode(torch.tensor(prompt(12)), cache)
    return model.denoise_logits(torch.tensor(prompt(8, seed=5)), cache)


@pytest.mark.parametrize("form", FORMS)
def test_weights_come_back_rounded_and_the_rest_as_it_was(source, tmp_path, form):
    before = load_checkpoint(source, torch.float32).state_dict()
    after = load_checkpoint(run(source, tmp_path / "out", form), torch.float32).state_dict()
    for name, weight in before.items():
        if "_proj" in name and "self_conditioning" not in name:
            apart = float((after[name] - weight).norm() / weight.norm())
            assert 0 < apart < ERROR[form], name
        else:
            assert torch.equal(after[name], weight), name


@pytest.mark.parametrize("form", FORMS)
def test_the_reference_package_unpacks_the_same_numbers(source, tmp_path, form):
    out = run(source, tmp_path / "out", form)
    declared = QuantizationConfig(**json.loads((out / "config.json").read_text())["quantization_config"])
    scheme = declared.config_groups["group_0"]
    from compressed_tensors.compressors import BaseCompressor

    compressor = BaseCompressor.get_value_from_registry(declared.format)
    tensors: dict[str, torch.Tensor] = {}
    for file in out.glob("*.safetensors"):
        tensors |= load_file(file)
    ours = load_checkpoint(out, torch.float32)
    for name in ("layers.0.self_attn.q_proj", "layers.1.mlp.down_proj"):
        prefix = f"model.decoder.{name}."
        parts = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        assert isinstance(scheme, QuantizationScheme)
        theirs = unpacked(parts, scheme, compressor)
        torch.testing.assert_close(ours.get_submodule(name).weight, theirs, rtol=2e-6, atol=0)


def test_transformers_reads_the_configuration(source, tmp_path):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(run(source, tmp_path / "out"))
    assert config.quantization_config["format"] == "pack-quantized"


def test_the_result_answers_and_has_everything_that_the_source_had(source, tmp_path):
    llm = LLM.load(run(source, tmp_path / "out"))
    assert llm.model.number_format == "int4"
    assert llm.defaults["max_new_tokens"] == 33
    answer = llm.generate("the canvas", GenerationConfig(max_new_tokens=8, seed=1, max_denoising_steps=3))
    assert len(answer.token_ids) <= 8


def test_it_runs_as_the_folder_rounded_at_load_does(source, tmp_path):
    """Rounding while converting and rounding while loading are one; only self-conditioning is left as it is."""
    converted = load_checkpoint(run(source, tmp_path / "out", keep=[]))
    rounded = load_checkpoint(source, "int4")
    for number in range(len(converted.layers)):
        name = f"layers.{number}.mlp.up_proj"
        one, other = (model.get_submodule(name) for model in (converted, rounded))
        assert isinstance(one, Int4Weight)
        assert isinstance(other, Int4Weight)
        assert torch.equal(one.matrix.packed, other.matrix.packed)
    assert (logits(converted).softmax(-1) - logits(rounded).softmax(-1)).abs().max() < 0.1


def test_parts_can_be_kept(source, tmp_path):
    out = run(source, tmp_path / "out", keep=["self_attn", "layers.0.mlp"])
    keys = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert "model.decoder.layers.0.self_attn.q_proj.weight" in keys
    assert "model.decoder.layers.0.mlp.up_proj.weight" in keys
    assert "model.decoder.layers.1.mlp.up_proj.weight_packed" in keys
    load_checkpoint(out)


def test_a_single_expert_can_be_kept(source, tmp_path):
    """ "experts.1." is expert 1 alone, not 10 … 19 as well; the others of the layer stay in four bits."""
    out = run(source, tmp_path / "out", keep=["layers.0.experts.1."])
    keys = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert "model.decoder.layers.0.experts.1.up_proj.weight" in keys
    assert "model.decoder.layers.0.experts.0.up_proj.weight_packed" in keys
    assert "model.decoder.layers.1.experts.1.up_proj.weight_packed" in keys
    before, after = (load_checkpoint(folder, torch.float32).state_dict() for folder in (source, out))
    name = "layers.0.experts.gate_up_proj"
    assert torch.equal(after[name][1], before[name][1].bfloat16().float())
    assert not torch.equal(after[name][0], before[name][0])
    load_checkpoint(out)


def test_columns_that_are_no_whole_groups_stay_as_they_are(source, tmp_path):
    out = run(source, tmp_path / "out", group=48)
    ignored = json.loads((out / "config.json").read_text())["quantization_config"]["ignore"]
    assert "model.decoder.layers.0.mlp.up_proj" in ignored
    load_checkpoint(out)


def test_a_quantized_folder_and_a_gguf_file_can_be_converted(tmp_path):
    pack, declared = compressed_tensors("float-quantized", num_bits=8, type="float", strategy="channel")
    write_foreign(tmp_path / "fp8", pack, declared, lambda name: "experts" in name)
    load_checkpoint(run(tmp_path / "fp8", tmp_path / "one"))
    file = write_gguf(tmp_path / "tiny.gguf", "Q8_0").folder
    assert load_checkpoint(run(file, tmp_path / "two")).config.canvas_length == 8


# --- interruptions --------------------------------------------------------------------------------------------------


def test_a_conversion_goes_on_after_the_last_whole_file(source, tmp_path):
    whole, out = run(source, tmp_path / "whole"), tmp_path / "out"
    steps = convert(source, out, "int4")
    next(steps)
    steps.close()  # as a kill between two files
    assert not out.exists()
    again = list(convert(source, out, "int4"))
    assert [step.resumed for step in again] == [True] + [False] * (len(again) - 1)
    assert again[-1].done == again[-1].total
    assert {file.name: file.read_bytes() for file in out.iterdir()} == {f.name: f.read_bytes() for f in whole.iterdir()}
    assert not (tmp_path / "out.converting").exists()


def test_a_failure_within_a_file_leaves_no_part_of_it(source, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match=r"No space left on device; what is done stays in out\.converting"):
        run(source, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out.converting").iterdir()] == ["conversion.json"]
    monkeypatch.undo()
    load_checkpoint(run(source, tmp_path / "out"))


KILLED = """
import os, sys
from pathlib import Path
from scumble.checkpoint import convert
from scumble.checkpoint.stream import StreamedFile

moment, count = sys.argv[3], int(sys.argv[4])

def dying(function):
    def run(*given, **named):
        global count
        count -= 1
        if not count:
            os.kill(os.getpid(), 9)
        return function(*given, **named)
    return run

owner = {"write": StreamedFile, "replace": os, "rename": os, "write_text": Path}[moment]
setattr(owner, moment, dying(getattr(owner, moment)))
list(convert.convert(Path(sys.argv[1]), Path(sys.argv[2]), "int4"))
"""


@pytest.mark.parametrize(
    ("moment", "count"), [("write", 9), ("replace", 1), ("replace", 3), ("write_text", 3), ("rename", 1)]
)
def test_a_kill_at_any_moment_leaves_nothing_half_written(source, tmp_path, moment, count):
    """Within a file, before the state or a file gets its name, within the small files, before the folder gets its."""
    command = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "out"), moment, str(count)]
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    out, whole = run(source, tmp_path / "out"), run(source, tmp_path / "whole")
    assert {file.name: file.read_bytes() for file in out.iterdir()} == {f.name: f.read_bytes() for f in whole.iterdir()}
    assert not (tmp_path / "out.converting").exists()


def test_another_conversion_is_not_mixed_in(source, tmp_path):
    steps = convert(source, tmp_path / "out", "int4")
    next(steps)
    steps.close()
    with pytest.raises(InvalidRequest, match="holds another unfinished conversion"):
        run(source, tmp_path / "out", "int8")


def test_numbers_that_are_not_finite_are_refused(source, tmp_path, monkeypatch):
    read = module._matrix
    monkeypatch.setattr(module, "_matrix", lambda piece: read(piece) * float("nan"))
    with pytest.raises(CheckpointError, match="must hold finite numbers"):
        run(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "int3"}, "format must be one of int4, int8, fp8, nvfp4, bfloat16; found 'int3'"),
        ({"keep": ["embed", "atention"]}, "no weight of .* has 'atention' in its name"),
        ({"group": 7}, "group size must be a multiple of 8"),
        ({"out": "source"}, "is the folder to convert"),
        ({"out": "full"}, "is there already and is not empty"),
        ({"out": "nowhere/out"}, "no such folder"),
    ],
)
def test_what_makes_no_sense_is_refused(source, tmp_path, change, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    options = {"out": "out", "form": "int4", "group": 32} | change
    with pytest.raises(InvalidRequest, match=message):
        run(source, tmp_path / options.pop("out"), **options)


@given(st.lists(st.floats(-7, 7, width=32), min_size=1, max_size=40))
@settings(deadline=None)
def test_e2m1_is_the_nearest(numbers):
    x = torch.tensor(numbers)
    found = torch.tensor(FP4)[round_fp4(x).long()]
    nearest = (x[:, None] - torch.tensor(FP4)).abs().amin(1)
    assert torch.equal((x - found).abs(), nearest)


@pytest.mark.parametrize("form", FORMS)
def test_zeros_stay_zeros(form):
    for tensor in packing(form, 32).pack(torch.zeros(4, 64))[1:2]:
        assert tensor.float().isfinite().all()

"""What is saved loads back bit for bit; a failed save changes nothing; loading needs little more than the weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from scumble import CheckpointError
from scumble.checkpoint import load_checkpoint, read_generation_config, save, save_checkpoint
from tiny import prompt, save_folder, tiny_model


def same_weights(one, other) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard_bytes", [10**9, 20_000, 1])
def test_round_trip_is_bitwise(tmp_path, dtype, shard_bytes):
    model = tiny_model(3, dtype)
    save_checkpoint(model, tmp_path, shard_bytes=shard_bytes)
    loaded = load_checkpoint(tmp_path)
    assert same_weights(model, loaded)
    assert loaded.config == model.config
    assert loaded.load_report.lines() == []
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_bytes < 10**9)
    save_checkpoint(loaded, tmp_path)  # onto the very files that it is mapped from
    assert same_weights(model, load_checkpoint(tmp_path))
    assert same_weights(model, loaded)


def test_generation_settings_round_trip(tmp_path):
    wanted = {"max_new_tokens": 33, "t_min": 0.3, "entropy_bound": 0.2, "max_denoising_steps": 9}
    assert read_generation_config(save_folder(tmp_path, tiny_model(), **wanted)) == wanted


def test_conversion_equals_casting(tmp_path):
    model = tiny_model(1)
    save_checkpoint(model, tmp_path)
    assert same_weights(load_checkpoint(tmp_path, dtype=torch.bfloat16), model.to(torch.bfloat16))


def test_a_file_of_mixed_formats_becomes_the_one_that_most_bytes_have(tmp_path):
    save_checkpoint(tiny_model(1, torch.bfloat16), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {key: t.float() if "norm" in key or "scalar" in key else t for key, t in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    model = load_checkpoint(tmp_path)
    assert {t.dtype for t in model.state_dict().values()} == {torch.bfloat16}
    assert model.encode(torch.tensor(prompt(5)), model.new_cache()).dtype == torch.bfloat16


def test_what_is_left_out_or_assumed_is_reported(tmp_path):
    save_checkpoint(tiny_model(1), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {key: t for key, t in tensors.items() if not key.startswith("model.encoder.")}
    tensors["model.encoder.vision_tower.patch.weight"] = torch.zeros(4, 4)
    tensors["model.encoder.language_model.norm.weight"] = tensors["model.decoder.norm.weight"].clone()
    tensors["something.else"] = torch.zeros(2)
    save_file(tensors, tmp_path / "model.safetensors")
    report = load_checkpoint(tmp_path).load_report
    assert (report.vision_tensors, report.vision_bytes, report.tied_copies) == (1, 64, 1)
    assert report.unknown == ("something.else",)
    assert len(report.assumed) == 3
    text = " ".join(report.lines())
    assert "left out the vision tower" in text
    assert "something.else" in text
    assert "left out 1 tied copies, which equal the weights that they repeat" in text


# --- saving that fails ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error"), RuntimeError("x")]
)
@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_full_disk_leaves_the_old_files_whole(tmp_path, monkeypatch, error, fails_at):
    """Whichever shard the disk fills up at: same names and same bytes as before, no half files, one clear line."""
    save_checkpoint(tiny_model(1), tmp_path, {"max_new_tokens": 5}, shard_bytes=20_000)
    before = files_of(tmp_path)
    calls = []

    def full(tensors, path, metadata=None):
        calls.append(path)
        Path(path).write_bytes(b"half")
        if len(calls) == fails_at:
            raise error
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr(save, "save_file", full)
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tiny_model(2), tmp_path, {"max_new_tokens": 6}, shard_bytes=20_000)
    assert files_of(tmp_path) == before
    assert len(calls) == fails_at


def test_a_failure_after_the_weights_leaves_them_as_they_were_too(tmp_path, monkeypatch):
    save_checkpoint(tiny_model(1), tmp_path)
    before = files_of(tmp_path)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save, "write_model_config", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(tiny_model(2), tmp_path)
    assert files_of(tmp_path) == before


def test_a_real_write_error_is_reported_in_one_line(tmp_path):
    """A process that may not write files above 64 KiB, as on a full disk; the weights need 150 KiB."""
    program = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from tiny import tiny_model
from scumble import CheckpointError
from scumble.checkpoint import save_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    save_checkpoint(tiny_model(), {str(tmp_path / "new")!r})
except CheckpointError as error:
    print(error)
"""
    child = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert "cannot be written" in child.stdout
    assert list((tmp_path / "new").iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CheckpointError, match="cannot be written"):
            save_checkpoint(tiny_model(), place)


# --- memory -----------------------------------------------------------------------------------------------------------

MEASURE = """
import ctypes, sys, torch
from scumble.checkpoint import load_checkpoint
def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))
load_checkpoint(sys.argv[2], dtype=torch.bfloat16)  # a tiny one first: what code and libraries take is not the weights'
ctypes.CDLL(None).malloc_trim(0)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
model = load_checkpoint(sys.argv[1], dtype=torch.bfloat16)
for tensor in model.state_dict().values():
    tensor.view(-1)[::1024].sum()  # touch every page: a map that nobody has read yet takes nothing
print((status("VmHWM") - before) / model.load_report.weight_bytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_loading_takes_at_most_1_15_times_the_weights_kept(tmp_path, stored):
    """A file of 271 MB (float32) or 136 MB (bfloat16), kept as 136 MB of bfloat16."""
    big = tiny_model(dtype=stored, vocab_size=32_768, hidden_size=512, intermediate_size=512, num_experts=16,
                     moe_intermediate_size=640)  # fmt: skip
    save_checkpoint(big, tmp_path / "big")
    save_checkpoint(tiny_model(), tmp_path / "small")
    child = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "big"), str(tmp_path / "small")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    ratio = float(child.stdout)
    print(json.dumps({"stored": str(stored), "peak / weights": round(ratio, 3)}))
    assert ratio <= 1.15

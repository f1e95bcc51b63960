"""`scumble info`: the numbers, counted another way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foreign import foreign_model
from scumble import LLM
from scumble.checkpoint.convert import convert
from scumble.checkpoint.memory import Available
from scumble.cli.info_table import short, size
from scumble.cli.main import main
from tiny import save_folder


def test_json_agrees_with_the_loaded_model(capfd: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main(["info", str(folder), "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    model = LLM.load(folder).model
    weights = model.state_dict()
    total = sum(tensor.numel() for tensor in weights.values())
    experts = sum(tensor.numel() for name, tensor in weights.items() if ".experts." in name)
    assert facts["parameters"]["total"] == total
    assert facts["parameters"]["active"] == total - experts // 2  # 2 of 4 experts
    assert facts["memory"]["float32"] == 4 * total
    assert facts["memory"]["bfloat16"] == 2 * total
    assert 0.5 * total < facts["memory"]["int4"] < facts["memory"]["int8"] < 2 * total
    assert facts["chat_template"] == "built-in"
    assert facts["generation"] == {"max_new_tokens": 24, "max_denoising_steps": 6}
    # one full layer: keys and values, 1 head of 16, 4 bytes; one sliding layer: 2 heads of 8, window 16 holds 15
    assert facts["kv_cache"]["float32"]["full_layers_per_1000_tokens"] == 2 * 16 * 4 * 1000
    assert facts["kv_cache"]["float32"]["sliding_layers_at_most"] == 2 * 2 * 8 * 4 * 15
    if facts["memory_available"] is not None:  # half of what loading leaves
        assert facts["cache_room"]["bytes"] * 2 <= facts["memory_available"]["bytes"]
        assert facts["cache_room"]["tokens"] == facts["architecture"]["context"]


def test_the_table_names_the_numbers(capfd: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main(["info", str(folder)]) == 0
    out = capfd.readouterr().out
    for said in ("sliding", "experts", "vocabulary", "active", "int4", "scales included", "KV cache", "canvas"):
        assert said in out
    assert "\x1b" not in out


def test_each_part_says_how_it_is_stored_and_the_model_whether_it_fits(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_folder(tmp_path / "source", foreign_model(vocab_size=300))
    list(convert(source, tmp_path / "small", "int4", keep=("self_attn",)))
    assert main(["info", str(tmp_path / "small"), "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    stored = {one["part"]: one["stored_as"] for one in facts["parts"]}
    assert stored["experts"] == ["int4, groups of 32"]
    assert stored["embedding, head"] == stored["attention"] == ["BF16"]
    read = facts["files"]["bytes"] - facts["left_out"]["vision_bytes"]
    assert sum(one["bytes"] for one in facts["parts"]) <= read
    assert facts["loads_as"]["format"] == "int4"
    assert facts["loads_as"]["fits"] is True
    monkeypatch.setattr("scumble.checkpoint.memory.available", lambda device: Available(1000, "left"))
    assert main(["info", str(tmp_path / "small")]) == 0
    assert "does not fit here" in capfd.readouterr().out


def test_units() -> None:
    assert (short(999), short(17_512_448)) == ("999", "17.5 M")
    assert (size(960), size(35_024_896)) == ("960 B", "35.0 MB")


def test_the_cache_is_counted_in_every_format(capfd: pytest.CaptureFixture[str], folder: Path) -> None:
    """A token's keys and values in eight bits: a byte a number, and a scale a head in the model's dtype."""
    assert main(["info", str(folder), "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)["kv_cache"]
    assert facts["bfloat16"]["full_layers_per_1000_tokens"] == 2 * 16 * 2 * 1000
    assert facts["int8"]["full_layers_per_1000_tokens"] == 2 * (16 + 2) * 1000
    assert facts["fp8"] == facts["int8"]
    assert main(["info", str(folder)]) == 0
    assert "int8, fp8" in capfd.readouterr().out


def test_commands_take_a_cache_dtype(capfd: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main(["generate", "a b", "--model", str(folder), "-n", "4", "--cache-dtype", "int8", "--no-live"]) == 0
    capfd.readouterr()
    assert main(["generate", "a b", "--model", str(folder), "--cache-dtype", "int4"]) == 2
    assert "cache_dtype must be None or one of int8, fp8; found 'int4'" in capfd.readouterr().err

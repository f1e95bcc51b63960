"""`scumble info`: the numbers, counted another way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scumble import LLM
from scumble.cli.info_table import short, size
from scumble.cli.main import main


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


def test_the_table_names_the_numbers(capfd: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main(["info", str(folder)]) == 0
    out = capfd.readouterr().out
    for said in ("sliding", "experts", "vocabulary", "active", "int4", "scales included", "KV cache", "canvas"):
        assert said in out
    assert "\x1b" not in out


def test_units() -> None:
    assert (short(999), short(17_512_448)) == ("999", "17.5 M")
    assert (size(960), size(35_024_896)) == ("960 B", "35.0 MB")

"""The script for the first minutes on a card, from end to end at toy size: it must not fail there for silly reasons."""

from __future__ import annotations

import importlib.util
import json
import sys
import tomllib
from pathlib import Path

import pytest

from ops.triton.conftest import HAS_CARD
from scumble.ops.triton import selfcheck

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.mark.slow
@pytest.mark.skipif(HAS_CARD, reason="run the script itself there")
def test_a_toy_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(selfcheck, "TOKENS", 6)
    specification = importlib.util.spec_from_file_location("gpu_day", BENCHMARKS / "gpu_day.py")
    assert specification is not None
    assert specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "gpu_day", script)
    specification.loader.exec_module(script)
    assert script.main(["--toy", "--out", str(tmp_path)]) == 0
    assert "self-check: all operations pass" in capsys.readouterr().out
    found = json.loads((tmp_path / "gpu-day.json").read_text())
    assert [row for row in found["passes"] + found["engine"] if "error" in row or "skipped" in row] == []
    assert all(row["same tokens"] for row in found["engine"])
    assert {row["format"] for row in found["passes"]} == {"bf16", "fp8", "int4"}
    assert all(row["finite"] for row in found["passes"])
    assert set(tomllib.loads((tmp_path / "tiles-sm0.toml").read_text())["operations"]) == set(found["tiles"])

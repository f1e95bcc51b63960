"""The script for the first minutes on a card, from end to end at toy size: it must not fail there for silly reasons."""

from __future__ import annotations

import importlib.util
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from ops.triton.conftest import HAS_CARD
from scumble.ops.triton import cases

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    specification = importlib.util.spec_from_file_location("gpu_day", BENCHMARKS / "gpu_day.py")
    assert specification is not None
    assert specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "gpu_day", script)
    specification.loader.exec_module(script)
    return script


@pytest.mark.slow
@pytest.mark.skipif(HAS_CARD, reason="run the script itself there")
def test_a_toy_day(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cases, "TOKENS", 6)
    assert script.main(["--toy", "--out", str(tmp_path)]) == 0
    assert "self-check: all pass" in capsys.readouterr().out
    found = json.loads((tmp_path / "gpu-day.json").read_text())
    assert [row for row in found["passes"] + found["engine"] if "error" in row or "skipped" in row] == []
    assert all(row["same tokens"] for row in found["engine"])
    assert {row["format"] for row in found["passes"]} == {"bf16", "fp8", "int4"}
    assert all(row["finite"] for row in found["passes"])
    assert set(tomllib.loads((tmp_path / "tiles-sm0.toml").read_text())["operations"]) == set(found["tiles"])


def test_a_part_that_fails_costs_no_other(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it had found by then stays as well."""

    def broken(day: Any) -> Any:
        yield {"format": "fp8", "ms": 1.5}
        raise torch.OutOfMemoryError("no memory")

    def at_once(day: Any) -> Any:
        raise RuntimeError("no driver")

    script.PARTS = {"card": script.card, "formats": at_once, "passes": broken, "bandwidth": script.bandwidth}
    assert script.main(["--toy", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "gpu-day.json").read_text())
    assert found["passes"] == [{"format": "fp8", "ms": 1.5}, {"error": "OutOfMemoryError: no memory"}]
    assert found["formats"] == {"error": "RuntimeError: no driver"}
    assert found["bandwidth"]["read"] > 0
    printed = capsys.readouterr().out
    assert "formats: RuntimeError: no driver" in printed
    assert "format fp8  ms 1.50\nerror OutOfMemoryError: no memory" in printed


def test_a_part_whose_process_dies_costs_no_other(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script.PARTS = {"card": script.card, "bandwidth": script.bandwidth}
    plain = script.subprocess.run

    def killed(command: list[str], **options: Any) -> Any:
        return (
            plain([sys.executable, "-c", "import os; os.abort()"], check=False)
            if "card" in command
            else plain(command, **options)
        )

    monkeypatch.setattr(script.subprocess, "run", killed)
    assert script.main(["--toy", "--apart", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "gpu-day.json").read_text())
    assert found["card"] == {"error": "its process ended with -6"}
    assert found["bandwidth"]["read"] > 0


@pytest.mark.skipif(HAS_CARD, reason="there is one")
def test_without_a_card_it_says_so(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.main([])
    assert "no CUDA device is here; --toy runs the same code on the CPU" in capsys.readouterr().err

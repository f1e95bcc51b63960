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
from scumble.ops.triton.launch import tile_table

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
    assert [
        row for row in found["passes"] + found["engine"] + found["stages"] if "error" in row or "skipped" in row
    ] == []
    assert all(row["same tokens"] for row in found["engine"])
    assert {row["format"] for row in found["passes"]} == {"bf16", "fp8", "int4"}
    assert all(row["finite"] for row in found["passes"])
    assert {row["stage"] for row in found["stages"]} == {"attention", "dense", "experts", "vocabulary"}
    tiles = tomllib.loads((tmp_path / "tiles-sm0.toml").read_text())["operations"]
    assert set(tiles) == {row["operation"] for row in found["tiles"]}


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
    assert "  format    ms\n     fp8  1.50\n  OutOfMemoryError: no memory" in printed


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


def test_a_process_that_is_killed_while_it_writes_leaves_what_was_there(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = script.Day(True, 1.0)
    day.found["card"] = {"card": "one"}
    day.save(tmp_path)

    def half(path: Path, text: str, **options: Any) -> None:
        with path.open("w") as file:
            file.write(text[: len(text) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", half)
    day.found["bandwidth"] = {"read": 1.0}
    with pytest.raises(KeyboardInterrupt):
        day.save(tmp_path)
    day.load(tmp_path)
    assert day.found == {"card": {"card": "one"}}


def test_who_stops_it_sees_what_was_found(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(day: Any) -> Any:
        raise KeyboardInterrupt

    script.PARTS = {"card": script.card, "bandwidth": script.bandwidth, "passes": stopped}
    assert script.main(["--toy", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "bandwidth, GB/s: read" in printed
    assert "passes: there was no time left for it, or it has not run" in printed


def test_ratios_stand_beside_the_passes_they_follow_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    tables = importlib.import_module("gpu_tables")

    def timed(rows: int, tokens: int, milliseconds: float) -> dict[str, Any]:
        return {"format": "fp8", "rows": rows, "tokens": tokens, "context": 1024, "graph ms": milliseconds}

    one, four, step = tables.compared([timed(1, 256, 10.0), timed(4, 256, 25.0), timed(1, 1, 5.0)])
    assert one["x steps"] == 256 / 16 * 5.0 / 10.0
    assert four["x one row"] == 2.5
    assert "x steps" not in four  # steps of four rows were not timed
    assert "x steps" not in step


@pytest.mark.skipif(HAS_CARD, reason="there is one")
def test_without_a_card_it_says_so(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.main([])
    assert "no CUDA device is here; --toy runs the same code on the CPU" in capsys.readouterr().err


def test_what_the_day_launches_is_known_before(script: Any) -> None:
    """So that it can be compiled on all cores. Every operation that has tiles for the card is among it, and so are the
    other tiles that are tried."""
    made = script.planned(script.Day(False, 8.0), 90)
    assert {launch.name for launch in made} == set(tile_table()[90])
    tried = {(launch.name, launch.tiles.sizes.get("BM"), launch.tiles.stages) for launch in made}
    assert {("up fp8", 16, 4), ("down int4", 32, 3), ("linear plain", 64, 3)} <= tried

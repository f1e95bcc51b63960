"""The whole benchmark on a tiny model: what its report holds, what the command prints, what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import make_folder

from scumble.bench.plots import draw
from scumble.bench.run import SCHEMA, Options, run_bench
from scumble.bench.subject import Subject
from scumble.cli.main import main
from scumble.errors import InvalidRequest

FIGURE = {"median", "q1", "q3", "spread", "count"}


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    options = Options(passes=3, mode="both", prompt_tokens=20, new_tokens=40, repeats=2, quick=True, memory=False)
    return json.loads(json.dumps(run_bench(Subject(shape="tiny"), options)))


def test_the_report_says_what_was_done(report: dict[str, Any]) -> None:
    assert report["schema"] == SCHEMA
    assert report["settings"]["passes"] == 3
    assert report["settings"]["seed"] == 0
    assert report["model"]["dtype"] == "bfloat16"
    assert report["model"]["random_weights"] is True
    machine = report["machine"]
    assert {"processor", "usable_cores", "threads", "torch", "busy_before", "memory_bytes"} <= set(machine)
    assert machine["threads"] >= 1


def test_the_report_names_no_host_and_no_path(report: dict[str, Any]) -> None:
    import socket

    text = json.dumps(report)
    assert f'"{socket.gethostname()}' not in text
    assert not re.search(r'"/[a-z]', text)


def test_fixed_figures(report: dict[str, Any]) -> None:
    fixed = report["fixed"]
    assert fixed["passes_per_canvas"] == {"mean": 3, "least": 3, "most": 3}
    assert fixed["valid_tokens"] == 2 * 40  # two rounds
    assert fixed["canvases"] == 4  # 32 and 8 tokens, twice
    assert set(fixed["seconds_per_pass"]) == FIGURE
    assert fixed["seconds_per_pass"]["count"] == 2 * 2 * 2
    assert fixed["tokens_per_pass"] == pytest.approx(80 / 12)
    times = [fixed[name]["median"] for name in ("first_draft_seconds", "first_text_seconds", "request_seconds")]
    assert times == sorted(times)
    assert report["autoregressive"]["valid_tokens"] == 80
    assert report["prefill"]["prompt_tokens"] == 20
    assert report["adaptive"] == {"skipped": report["adaptive"]["skipped"]}


def test_stages_and_floors(report: dict[str, Any]) -> None:
    stages = report["stages"]
    assert sum(row["seconds"] for row in stages["rows"].values()) == pytest.approx(stages["total_seconds"])
    assert stages["not_separately_visible"] == []
    assert stages["instrumentation_slowdown"] > 0
    for name in ("attention", "dense", "experts", "vocabulary"):
        assert stages["rows"][name]["floor_seconds"] > 0
        assert stages["rows"][name]["bound"] in ("memory", "arithmetic")
    assert report["limits"]["bandwidth_bytes_per_second"] > 0
    assert set(report["floors"]) == {"pass", "prefill", "autoregressive_step"}


def test_a_trained_folder_runs_adaptively(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path / "model", max_position_embeddings=1024)
    arguments = ["--mode", "adaptive", "--quick", "-n", "20", "--prompt-tokens", "10", "--json"]
    assert main(["bench", str(folder), *arguments]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["model"]["name"] == "model"
    adaptive = report["adaptive"]
    assert adaptive["prompts"] == 1
    assert adaptive["diffusion"]["valid_tokens"] <= 20
    assert adaptive["diffusion"]["passes_per_canvas"]["most"] <= 6  # the folder's own generation_config.json
    assert "fixed" not in report
    assert report["memory"]["peak"] >= report["memory"]["before"] > 0


def test_the_table(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--shape", "tiny", "--quick", "--mode", "fixed", "--prompt-tokens", "20", "-n", "8"]) == 0
    out, err = capfd.readouterr()
    for said in ("prefill", "first draft", "vocabulary", "floor", "GB/s", "autoregressive", "a quick look"):
        assert said in out
    assert "\x1b" not in out
    assert err == ""


def test_the_projection(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--project"]) == 0
    assert "projection" in capfd.readouterr().out
    assert main(["bench", "--project", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["projection"] is True


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shape", "small"], "--shape must be one of small-315m"),
        (["--shape", "tiny", "--dtype", "float8"], "--dtype must be one of auto, float32"),
        (["--shape", "tiny", "--dtype", "fp8"], "dtype fp8 cannot run on cpu"),
        (["--shape", "tiny", "--passes", "1"], "--passes must be in 2 …"),
        (["--shape", "tiny", "--mode", "fast"], "--mode must be fixed, adaptive or both"),
        (["--shape", "tiny", "--mode", "adaptive"], "needs a trained model"),
        (["--shape", "tiny", "--against", "vllm"], "--against must be transformers"),
        (["--shape", "tiny", "--prompt-tokens", "20000"], "must be ≤ 16384"),
        (["somewhere", "--shape", "tiny"], "not both"),
        (["--shape", "tiny", "--layers", "9"], "--layers must lie in 1 … 6"),
        (["--shape", "tiny", "--repeats", "0"], "--repeats must be in 1 …"),
        (["--shape", "tiny", "--threads", "0"], "--threads must be in 1 …"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(capfd: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert main(["bench", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_a_missing_folder_is_one_line_and_exit_1(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["bench", str(tmp_path / "nothing")]) == 1
    assert capfd.readouterr().err.count("\n") == 1


def test_help_shows_an_example(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    assert "scumble bench --shape small-315m --against transformers" in capfd.readouterr().out


def test_plots_without_matplotlib_are_refused_before_anything_is_measured(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("scumble.bench.plots.find_spec", lambda _: None)
    assert main(["bench", "--shape", "tiny", "--plot", str(tmp_path)]) == 1
    assert "pip install matplotlib" in capfd.readouterr().err


def test_curves_and_pictures(tmp_path: Path) -> None:
    options = Options(passes=2, mode="fixed", prompt_tokens=8, new_tokens=8, repeats=1, quick=True, memory=False)
    subject = Subject(shape="tiny", layers=1)
    report = run_bench(subject, Options(**{**vars(options), "curves": True}))
    curves = report["curves"]
    assert set(curves) == {"canvas length", "context length", "batch", "experts", "vocabulary"}
    for points in curves.values():
        assert [point["at"] for point in points] == sorted({point["at"] for point in points})
        assert all(set(point["seconds"]) == FIGURE and point["floor_seconds"] > 0 for point in points)
    pytest.importorskip("matplotlib")
    files = draw(report, tmp_path)
    assert len(files) == 6
    assert all(file.read_text().startswith("<?xml") for file in files)


def test_options_are_checked() -> None:
    with pytest.raises(InvalidRequest, match="fixed length"):
        Options(against="transformers", mode="adaptive")

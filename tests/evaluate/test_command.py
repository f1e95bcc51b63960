"""`scumble eval`: what it prints and writes, and what it refuses before any work."""

import copy
import json
import shutil

import pytest

from scumble.cli.main import main
from tiny import save_folder

QUICK = ["--dtype", "float32", "--limit", "1", "--steps", "1", "--temperature", "0"]


def run(capfd, *arguments) -> tuple[str, str]:
    assert main(["eval", *map(str, arguments)]) == 0
    return capfd.readouterr()


def test_tables_and_answers(capfd, folder, data, tmp_path):
    answers = tmp_path / "answers.jsonl"
    out, err = run(
        capfd, "--model", folder, "--data", data, "-t", "repair", "-t", "infill", *QUICK, "--answers", answers
    )
    assert "single-line repair, held-out functions" in out
    assert "single-line infilling, held-out functions" in out
    assert err == ""
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [(line["task"], line["variant"]) for line in lines] == [
        (task, decoder) for task in ("infill", "repair") for decoder in ("diffusion", "autoregressive")
    ]
    assert all(line["wanted"] and isinstance(line["text"], str) and line["scores"] for line in lines)
    assert [bool(line["given"]) for line in lines] == [False, False, True, True]


def test_json(capfd, folder, data):
    out, _ = run(capfd, "--model", folder, "--data", data, "--task", "loss", *QUICK, "--json")
    report = json.loads(out)
    assert [task["name"] for task in report["tasks"]] == ["loss"]


def test_a_sweep_of_repair(capfd, folder, data, tmp_path):
    pytest.importorskip("matplotlib")
    target, plot = tmp_path / "sweep.json", tmp_path / "sweep.svg"
    out, _ = run(
        capfd, "--model", folder, "--data", data, "-t", "repair", *QUICK, "--grid", "entropy_bound=0.5,1",
        "--grid", "commit=argmax", "--metric", "better", "--sweep", target, "--plot", plot,
    )  # fmt: skip
    assert "no other point has as much quality" in out
    report = json.loads(target.read_text())
    assert report["task"]["name"] == "repair"
    assert len(report["task"]["variants"]) == 2 + 1
    assert report["metric"] == "better"
    assert plot.stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task", "magic"], "--task must be one of loss, infill"),
        (["--grid", "commit=argmax"], "--grid says what a sweep tries"),
        (["--grid", "temperature=1", "--temperature", "1", "--sweep", "x.json"], "both fix temperature"),
        (["--decoder", "magic"], "--decoder must be one of diffusion, autoregressive"),
        (["--limit", "-1"], "--limit must be 0"),
        (["--limit", "some"], "--limit"),
        (["--seed", "-1"], "--seed must lie in"),
        (["--temperature", "-1"], "temperature"),
        (["--canvas-length", "0"], "canvas_length"),
        (["--plot", "x.png"], "give --sweep FILE too"),
        (["--sweep", "x.json", "-t", "loss"], "one task that generates"),
        (["--sweep", "x.json", "-t", "infill", "-t", "repair"], "one task that generates"),
        (["--sweep", "x.json", "--decoder", "diffusion"], "leave --decoder out"),
        (["--sweep", "nowhere/x.json"], "the folder to write to does not exist"),
        (["--sweep", "x.json", "--plot", "nowhere/x.png"], "the folder to write to does not exist"),
        (["--answers", "nowhere/x.jsonl"], "the folder to write to does not exist"),
        (["--sweep", "."], "is a folder"),
        (["--sweep", "x.json", "--plot", "x.gif"], "--plot writes"),
        (["--sweep", "x.json", "--answers", "./x.json"], "--sweep and --answers both name x.json"),
        (["--data", "x.jsonl", "--answers", "x.jsonl"], "--data and --answers both name x.jsonl"),
        (["--sweep", "x.json", "--grid", "seed=1,2"], "--grid tries one of"),
    ],
)
def test_bad_options_are_refused_before_the_model_is_loaded(fails, arguments, said):
    assert said in fails(2, "eval", "--model", "no/such/model", *arguments)


def test_a_report_without_any_task_that_was_asked_for_is_a_failure(capfd, unmarked, data, tmp_path):
    arguments = ["eval", "--model", str(unmarked.folder), "--data", str(data), *QUICK, "-t", "infill"]
    assert main(arguments) == 1
    out, err = capfd.readouterr()
    assert "the model was not trained to fill in the middle" in " ".join(out.split())
    assert err == ""
    assert main([*arguments, "--json"]) == 1
    assert json.loads(capfd.readouterr().out)["tasks"][0]["status"] == "skipped"
    assert main([*arguments, "-t", "loss"]) == 0


def test_weights_that_are_not_numbers_end_every_task(fails, llm, data, tmp_path):
    model = copy.deepcopy(llm.model)
    model.embed_tokens.weight[5, 3] = float("nan")
    broken = save_folder(tmp_path / "broken", model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(llm.folder / name, broken)
    for task in ("loss", "infill"):
        assert "must be finite" in fails(1, "eval", "--model", broken, "--data", data, "-t", task, *QUICK)


def test_files_and_folders_that_are_missing(fails, folder, tmp_path):
    assert "no such folder" in fails(1, "eval", "--model", tmp_path / "nowhere")
    assert "cannot be read" in fails(1, "eval", "--model", folder, "--data", tmp_path / "nowhere")
    missing = ["-t", "infill-humaneval", "--human-eval", tmp_path / "nowhere"]
    assert "cannot be read as HumanEval" in fails(1, "eval", "--model", folder, *missing)
    (tmp_path / "bad.jsonl").write_text("nonsense\n")
    assert "bad.jsonl, line 1: not JSON" in fails(1, "eval", "--model", folder, "--data", tmp_path / "bad.jsonl")
    assert "canvas_length" in fails(2, "eval", "--model", folder, "-t", "infill", "--canvas-length", 1000)

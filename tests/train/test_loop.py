"""The training loop: it learns, several processes share it, and what it writes can be run and trained further."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest
import torch

from scumble import LLM, GenerationConfig
from scumble.checkpoint import load_checkpoint, read_generation_config, save_checkpoint
from scumble.cli.main import main
from scumble.llm import embedded_path
from scumble.text import Tokenizer
from scumble.train import loop
from scumble.train.loop import train
from scumble.train.record import read_metrics
from scumble.train.setup import make_batches, make_optimizer, prepare_model

from .runs import edit, plan, tuning_plan


def test_training_learns_and_its_model_generates(folder):
    reports = []
    model_folder = train(plan(folder, "learn", 60), reports.append)
    assert reports[-1].causal < 0.6 * reports[0].causal
    assert reports[-1].denoise < 0.8 * reports[0].denoise
    assert reports[-1].validation_causal is not None
    llm = LLM.load(model_folder, dtype="float32")
    assert llm.generate("def add_3(a, b):", GenerationConfig(max_new_tokens=12)).token_ids
    about = json.loads((model_folder / "training.json").read_text())
    assert about["progress"]["step"] == 60
    assert [line["step"] for line in read_metrics(folder / "learn")] == list(range(1, 61))


def test_a_checkpoint_is_fine_tuned_and_keeps_its_settings(folder):
    first = train(plan(folder, "base", 3), lambda report: None)
    settings = {"max_new_tokens": 40, "entropy_bound": 0.3}
    save_checkpoint(load_checkpoint(first), first, generation_config=settings)
    tuned = train(tuning_plan(folder, "tuned", first), lambda report: None)
    before, after = load_checkpoint(first).state_dict(), load_checkpoint(tuned).state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert read_generation_config(tuned) == settings


def test_the_command_says_how_far_a_run_is(folder, capsys, monkeypatch):
    plan(folder, "far", 3)
    command = ["train", str(folder / "far.toml")]
    for _ in range(2):  # the second time there is nothing left to do
        assert main(command) == 0
        assert "step 3 of 3; model in" in capsys.readouterr().err

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_step", interrupt)
    plan(folder, "far", 5)
    assert main(command) == 130
    assert "goes on from step 3" in capsys.readouterr().err


def test_minutes_end_a_piece(folder):
    started = time.monotonic()
    config = plan(folder, "short", 100_000, "minutes = 0.02\n")
    train(config, lambda report: None)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("muon", ["false", "true"])
def test_two_processes_train_as_one_that_averages_both_batches(folder, muon):
    """With Muon each of them makes some of the updates, and gets the others'."""
    name = f"ranks-{muon}"
    plan(folder, name, 3)
    config = edit(folder, name, ("warmup = 5", f"warmup = 5\nmuon = {muon}"))
    lines = trained_by_two(folder, name)
    assert [line["step"] for line in lines] == [1, 2, 3]  # one process reports

    model, specials = prepare_model(config, Tokenizer.from_folder(config.data.tokenizer))
    model.train().requires_grad_(True)
    optimizer = make_optimizer(model, config)
    batches = make_batches(
        config, config.data.train, Tokenizer.from_folder(config.data.tokenizer), specials, model.config, ""
    )
    for step, line in enumerate(lines):
        for group in optimizer.param_groups:
            group["lr"] = loop.learning_rate(step, config)
        both = [loop._losses(model, batches.batch(turn), config, turn) for turn in (2 * step, 2 * step + 1)]
        sum(result.total / 2 for result in both).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad()
        assert line["causal"] == pytest.approx(sum(result.causal for result in both) / 2, rel=1e-4)
        assert line["denoise"] == pytest.approx(sum(result.denoise for result in both) / 2, rel=1e-4)
    assert lines[-1]["tokens"] == sum(batches.batch(turn).lengths.sum() for turn in range(6))


def test_all_processes_agree_on_which_batches_have_no_canvas(folder):
    """They share gradients, and a batch without a canvas has none for the weights that only a canvas uses."""
    plan(folder, "agreed", 8, "[objective]\ncausal_share = 0.5\n")
    without = [line["denoise"] == 0 for line in trained_by_two(folder, "agreed")]
    assert True in without
    assert False in without


def test_batches_without_a_canvas_leave_what_only_a_canvas_uses(folder):
    config = plan(folder, "causal", 3, "[objective]\ncausal_share = 1.0\n")
    reports = []
    trained = load_checkpoint(train(config, reports.append)).state_dict()
    assert [report.denoise for report in reports] == [0, 0, 0]
    assert all(report.causal > 0 for report in reports)
    fresh, _ = prepare_model(config, Tokenizer.from_folder(config.data.tokenizer))
    same = {name for name, weight in fresh.state_dict().items() if torch.equal(weight.bfloat16(), trained[name])}
    assert {name for name in trained if "self_conditioning" in name} <= same
    assert "embed_tokens.weight" not in same
    assert "self_conditioning.up_proj.weight" in same


def trained_by_two(folder, name):
    """Run the plan of that name in two processes -> the lines of its log."""
    ranks = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    child = subprocess.run(
        [sys.executable, *ranks, "-m", "scumble", "train", str(folder / f"{name}.toml"), "--json"],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    return list(read_metrics(folder / name))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_run_on_holes_and_damaged_lines(folder):
    """Fill-in-the-middle batches, repairs and drafts, in the embedded model's tokens, which have the markers."""
    plan(folder, "holes", 4)
    share = "[objective]\ninfill_share = 1.0\nrepair_share = 1.0\ndraft_share = 0.5\n\n[run]"
    seen = []
    markers = ('tokenizer = "tokenizer"', f'tokenizer = "{embedded_path()}"')
    train(edit(folder, "holes", markers, ("[run]", share)), seen.append)
    assert [report.step for report in seen] == [1, 2, 3, 4]
    assert all(report.denoise > 0 for report in seen)

"""A stopped run goes on exactly where it was, or says why it cannot."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from scumble import DataError
from scumble.checkpoint import load_checkpoint
from scumble.text import Tokenizer
from scumble.train.lock import locked
from scumble.train.loop import train
from scumble.train.record import read_metrics
from scumble.train.setup import make_optimizer, prepare_model
from scumble.train.state import Progress, read_progress, save_state

from .runs import edit, interrupted_at, plan, tuning_plan


@pytest.mark.parametrize("muon", [False, True])
def test_a_resumed_run_equals_one_that_never_stopped(folder, muon):
    """Same losses to the last bit: data, noise and rate depend on the step alone, and both moments are saved."""
    whole, pieces = [], []
    named = [plan(folder, f"{name}-{muon}", 8) for name in ("whole", "pieces")]
    start, stop = (replace(own, optimizer=replace(own.optimizer, muon=muon)) for own in named)
    train(start, whole.append)

    with pytest.raises(KeyboardInterrupt):
        train(stop, interrupted_at(5, pieces))
    train(stop, pieces.append)
    assert [(r.step, r.causal, r.denoise) for r in pieces] == [(r.step, r.causal, r.denoise) for r in whole]
    same = [load_checkpoint(folder / name / "model").state_dict() for name in (f"whole-{muon}", f"pieces-{muon}")]
    assert all(torch.equal(same[0][key], same[1][key]) for key in same[0])


def test_a_killed_run_goes_on_from_its_last_saved_step(folder):
    plan(folder, "killed", 400)
    code = "import sys; from scumble.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "train", str(folder / "killed.toml"), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["step"] >= 7:
                os.kill(process.pid, signal.SIGKILL)
                break
    seen = []
    config = plan(folder, "killed", 12)
    train(config, seen.append)
    assert seen[0].step in (7, 10)  # the last multiple of save_every = 3, and one
    assert seen[-1].step == 12
    assert [line["step"] for line in read_metrics(folder / "killed")] == list(range(1, 13)), "no step is logged twice"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_saves_it_and_the_run_goes_on_as_if_there_had_been_none(folder, number):
    """In the middle of a step some weights are a step ahead of others, so the signal waits for its end."""
    out = f"signal-{number}"
    plan(folder, out, 4000)
    code = "import sys; from scumble.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "train", str(folder / f"{out}.toml"), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["step"] == 4:
                process.send_signal(number)
                break
        _, errors = process.communicate()
    assert process.returncode == 128 + number
    step = read_progress(folder / out).step
    assert f"interrupted; the same command goes on from step {step}" in errors
    assert step >= 4
    assert [line["step"] for line in read_metrics(folder / out)] == list(range(1, step + 1))

    with pytest.raises(KeyboardInterrupt):  # the same run, stopped behind that step and not within one
        train(plan(folder, f"{out}-between", 4000), interrupted_at(step, []))
    ours, theirs = (load_file(folder / name / "state.safetensors") for name in (out, f"{out}-between"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_two_runs_in_one_folder_do_not_mix(folder):
    config = plan(folder, "locked", 2)
    (folder / "locked").mkdir()
    with locked(folder / "locked"):
        with pytest.raises(DataError, match=rf"another run trains in .*locked \(process {os.getpid()}\)"):
            train(config, lambda report: None)
        assert not (folder / "locked" / "state.safetensors").exists()
    train(config, lambda report: None)
    train(config, lambda report: None)  # the file of a run that has ended locks nothing


def test_a_log_that_a_kill_cut_short_is_cut_back_to_the_saved_step(folder):
    train(plan(folder, "log", 4), lambda report: None)
    path = folder / "log" / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[-1].replace('"step": 4', '"step": 5') + '\n{"step": 6, "tok')
    train(plan(folder, "log", 6), lambda report: None)
    assert path.read_text().startswith(whole)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


def test_a_run_with_another_objective_is_not_resumed(folder):
    train(plan(folder, "fixed", 2), lambda report: None)
    with pytest.raises(DataError, match=r"another objective\.copies \(1, now 2\)"):
        train(plan(folder, "fixed", 2, "[objective]\ncopies = 2\n"), lambda report: None)
    plan(folder, "fixed", 2)
    with pytest.raises(DataError, match=r"another optimizer\.muon"):
        train(edit(folder, "fixed", ("rate = 1e-2", "muon = true")), lambda report: None)


def test_a_run_that_broke_down_keeps_its_last_good_state_and_goes_on_at_a_lower_rate(folder):
    """99 times larger weights a step leave float32's range after some twenty; a save at every step must notice."""
    broken = (("rate = 1e-2", "rate = 10.0\nweight_decay = 10.0\nfinal = 1.0"), ("warmup = 5", "warmup = 0"))
    for every, reached in ((1000, 4), (1, None)):
        out = f"nan-{every}"
        train(plan(folder, out, 4), lambda report: None)
        plan(folder, out, 80)
        with pytest.raises(DataError, match=r"must be finite, found .* lower optimizer\.rate"):
            train(edit(folder, out, *broken, ("save_every = 3", f"save_every = {every}")), lambda report: None)
        state = load_file(folder / out / "state.safetensors")
        assert all(torch.isfinite(tensor).all() for tensor in state.values())
        assert reached in (None, read_progress(folder / out).step)
    seen = []
    train(plan(folder, "nan-1000", 6), seen.append)
    assert [report.step for report in seen] == [5, 6]


def test_weights_that_are_not_finite_are_not_saved(folder):
    config = plan(folder, "poisoned", 1)
    train(config, lambda report: None)
    before = (folder / "poisoned" / "state.safetensors").read_bytes()
    model, _ = prepare_model(config, Tokenizer.from_folder(config.data.tokenizer))
    model.embed_tokens.weight.data[3, 5] = float("nan")
    with pytest.raises(DataError, match=r"step 7: embed_tokens\.weight must be finite, found infinity or NaN"):
        save_state(folder / "poisoned", model, make_optimizer(model, config), Progress(step=7), {})
    assert (folder / "poisoned" / "state.safetensors").read_bytes() == before


def test_a_state_without_names_that_came_later_counts_as_having_their_defaults(folder):
    train(plan(folder, "older", 2), lambda report: None)
    path = folder / "older" / "state.safetensors"
    with safe_open(str(path), "pt") as handle:
        metadata = handle.metadata()
    about = json.loads(metadata["about"])
    del about["objective.span_share"], about["run.init"]
    save_file(load_file(path), path, metadata=metadata | {"about": json.dumps(about | {"optimizer.rate": 0.5})})
    with pytest.raises(DataError, match=r"objective\.span_share \(0\.0, now 0\.5\)"):
        train(plan(folder, "older", 3, "[objective]\nspan_share = 0.5\n"), lambda report: None)
    train(plan(folder, "older", 3), lambda report: None)
    assert read_progress(folder / "older").step == 3


def test_a_new_model_and_a_fine_tuned_one_do_not_take_over_each_others_state(folder):
    first = train(plan(folder, "own", 2), lambda report: None)
    with pytest.raises(DataError, match=r"another run\.init \('', now 'a checkpoint'\)"):
        train(tuning_plan(folder, "own", first), lambda report: None)
    train(tuning_plan(folder, "other", first), lambda report: None)
    train(tuning_plan(folder, "other", first), lambda report: None)
    with pytest.raises(DataError, match=r"another run\.init \('a checkpoint', now ''\)"):
        train(plan(folder, "other", 2), lambda report: None)


def test_a_damaged_state_is_named(folder):
    config = plan(folder, "damaged", 2)
    train(config, lambda report: None)
    state = folder / "damaged" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"state\.safetensors.*not a whole training state"):
        train(config, lambda report: None)


def test_a_fine_tuned_model_resumes(folder):
    first = train(plan(folder, "first", 4), lambda report: None)
    whole, pieces = [], []
    longer = ("steps = 2", "steps = 12")
    train(tuning_plan(folder, "whole-student", first, longer), whole.append)
    stopped = tuning_plan(folder, "student", first, longer)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, interrupted_at(9, pieces))
    train(stopped, pieces.append)
    assert [(r.step, r.causal, r.denoise) for r in pieces] == [(r.step, r.causal, r.denoise) for r in whole]


def test_a_state_of_a_run_with_an_option_that_is_gone_is_not_resumed(folder):
    config = plan(folder, "gone", 2)
    train(config, lambda report: None)
    path = folder / "gone" / "state.safetensors"
    with safe_open(str(path), "pt") as handle:
        metadata = handle.metadata()
    about = json.loads(metadata["about"])
    save_file(
        load_file(path), path, metadata=metadata | {"about": json.dumps(about | {"objective.distill_share": 0.0})}
    )
    train(config, lambda report: None)
    save_file(
        load_file(path), path, metadata=metadata | {"about": json.dumps(about | {"objective.distill_share": 0.5})}
    )
    with pytest.raises(DataError, match=r"was made with objective\.distill_share = 0\.5, which is no longer there"):
        train(config, lambda report: None)

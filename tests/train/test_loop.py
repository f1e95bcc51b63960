"""The training loop: it learns, it resumes exactly, it refuses what it cannot use, and what it writes can be run."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from scumble import LLM, DataError, GenerationConfig
from scumble.checkpoint import load_checkpoint, read_generation_config, save_checkpoint
from scumble.cli.main import main
from scumble.text import Tokenizer
from scumble.train import loop
from scumble.train.config import read_train_config
from scumble.train.loop import train
from scumble.train.record import read_metrics
from scumble.train.setup import make_batches, make_optimizer, prepare_model
from scumble.train.state import Progress, read_progress, save_state

CONFIG = """
[model]
hidden_size = 32
layers = 2
heads = 2
head_dim = 16
kv_heads = 1
full_head_dim = 16
full_kv_heads = 1
mlp = 48
experts = 4
experts_per_token = 2
expert_mlp = 16
sliding_window = 8
context = 128
canvas_length = 8

[data]
train = "text.jsonl"
validation = "text.jsonl"
tokenizer = "tokenizer"
length = 32

[optimizer]
rate = 1e-2
warmup = 5

[run]
out = "{out}"
steps = {steps}
tokens = 128
save_every = 3
validate_every = 10
bfloat16 = false
threads = 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with thirty tiny documents and a tokenizer trained on them."""
    path = tmp_path_factory.mktemp("training")
    texts = [f"def add_{i}(a, b):\n    return a + b + {i}\n" for i in range(30)]
    (path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=300, special_tokens=["<pad>", "<eos>", "<bos>"], initial_alphabet=alphabet),
    )
    (path / "tokenizer").mkdir()
    backend.save(str(path / "tokenizer" / "tokenizer.json"))
    return path


def plan(folder: Path, out: str, steps: int, extra: str = ""):
    path = folder / f"{out}.toml"
    path.write_text(CONFIG.format(out=out, steps=steps) + extra)
    return read_train_config(path)


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


@pytest.mark.parametrize("muon", [False, True])
def test_a_resumed_run_equals_one_that_never_stopped(folder, muon):
    """Same losses to the last bit: data, noise and rate depend on the step alone, and both moments are saved."""
    whole, pieces = [], []
    named = [plan(folder, f"{name}-{muon}", 8) for name in ("whole", "pieces")]
    start, stop = (replace(own, optimizer=replace(own.optimizer, muon=muon)) for own in named)
    train(start, whole.append)

    def interrupt(report):
        pieces.append(report)
        if report.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stop, interrupt)
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


def edit(folder: Path, out: str, *changes: tuple[str, str]):
    """The plan of `plan(folder, out, …)` with some of its text replaced."""
    path = folder / f"{out}.toml"
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return read_train_config(path)


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


def tuning_plan(folder: Path, out: str, first: Path, *changes: tuple[str, str]):
    path = folder / f"{out}.toml"
    text = CONFIG.format(out=out, steps=2) + f'init = "{first}"\n'
    path.write_text("[data]" + text.split("[data]")[1])
    return edit(folder, out, *changes)


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


def test_a_checkpoint_is_fine_tuned_and_keeps_its_settings(folder):
    first = train(plan(folder, "base", 3), lambda report: None)
    settings = {"max_new_tokens": 40, "entropy_bound": 0.3}
    save_checkpoint(load_checkpoint(first), first, generation_config=settings)
    tuned = train(tuning_plan(folder, "tuned", first), lambda report: None)
    before, after = load_checkpoint(first).state_dict(), load_checkpoint(tuned).state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert read_generation_config(tuned) == settings


def test_a_model_learns_from_its_own_autoregressive_answers_and_resumes(folder):
    """The teacher is the checkpoint that the run began with, after a resumption too."""
    first = train(plan(folder, "teacher", 60), lambda report: None)
    change = ("[run]", "[objective]\ndistill_share = 0.7\ntrajectory_share = 0.5\nself_conditioning = 0.8\n\n[run]")
    whole, pieces = [], []
    longer = ("steps = 2", "steps = 12")
    train(tuning_plan(folder, "whole-student", first, change, longer), whole.append)
    stopped = tuning_plan(folder, "student", first, change, longer)

    def interrupt(report):
        pieces.append(report)
        if report.step == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stopped, interrupt)
    train(stopped, pieces.append)
    assert [(r.step, r.causal, r.denoise) for r in pieces] == [(r.step, r.causal, r.denoise) for r in whole]


def test_what_does_not_fit_the_checkpoint_is_refused(folder):
    first = train(plan(folder, "small", 1), lambda report: None)
    tokenizer = Backend.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    tokenizer.add_tokens(["one", "two", "three"])
    (folder / "larger").mkdir()
    tokenizer.save(str(folder / "larger" / "tokenizer.json"))
    changes = {
        "tokenizer.json has 303 tokens, the model in .* only 300": ('"tokenizer"', '"larger"'),
        r"shortest_canvas must be at most the model's canvas_length \(8\)": (
            "[run]", "[objective]\nshortest_canvas = 9\n[run]",
        ),
        r"data.length must be at most the model's context \(128\), found 129": ("length = 32", "length = 129"),
    }  # fmt: skip
    for message, change in changes.items():
        with pytest.raises(DataError, match=message):
            train(tuning_plan(folder, "fits", first, change), lambda report: None)
    plan(folder, "small", 2)
    with pytest.raises(DataError, match=r"shape \[300, 32\], the configuration's model \[303, 32\]"):
        train(edit(folder, "small", ('"tokenizer"', '"larger"')), lambda report: None)


def test_packed_tokens_that_cannot_be_used_are_named_with_their_option(folder):
    def pack(ids: list[int]) -> None:
        np.array(ids, "<u2").tofile(folder / "packed.bin")
        np.array([0, len(ids)] if ids else [0], "<i8").tofile(folder / "packed.offsets")
        about = {"tokens": len(ids), "documents": 1 if ids else 0, "vocabulary": 400}
        (folder / "packed.json").write_text(json.dumps(about))

    plan(folder, "packed", 1)
    config = edit(folder, "packed", ('validation = "text.jsonl"', 'validation = "packed.bin"'))
    pack([5, 399, 6])
    with pytest.raises(DataError, match=r"data\.validation: .*holds the token id 399, the model has 300 tokens"):
        train(config, lambda report: None)
    pack([])
    with pytest.raises(DataError, match=r"data\.validation: .*holds no documents"):
        train(config, lambda report: None)


def test_a_missing_tokenizer_comes_with_the_way_to_one(folder):
    plan(folder, "speechless", 1)
    with pytest.raises(DataError, match=r"no tokenizer\.json in .*scumble data tokenizer"):
        train(edit(folder, "speechless", ('"tokenizer"', '"nowhere"')), lambda report: None)


def test_a_folder_that_cannot_be_written_is_found_before_the_first_step(folder):
    (folder / "taken").write_text("a file")
    with pytest.raises(DataError, match=r"run\.out must be a folder, found a file"):
        train(plan(folder, "taken", 1), lambda report: pytest.fail("a step was taken"))
    with pytest.raises(DataError, match=r"run\.out: nothing can be written in .*taken/below"):
        train(
            edit(folder, "taken", ('out = "taken"', 'out = "taken/below"')),
            lambda report: pytest.fail("a step was taken"),
        )


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("rate = 1e-2", "rate = -1.0"), "optimizer.rate must lie in"),
        (("rate = 1e-2", "speed = 1.0"), "has no 'speed'; known: rate"),
        (("rate = 1e-2", 'rate = "fast"'), "optimizer.rate must be a float"),
        (("rate = 1e-2", "rate = nan"), "optimizer.rate must be finite"),
        (("[optimizer]", "[optimiser]"), "unknown table 'optimiser'"),
        (("length = 32", "length = ["), "cannot be read as TOML"),
        (("hidden_size = 32\n", ""), "lacks hidden_size"),
        (("hidden_size = 32", "hidden_size = 0"), "model.hidden_size must lie in 1 … 131072, found 0"),
        (("layers = 2", "layers = 0"), "model.layers must lie in 1 … 1000, found 0"),
        (("context = 128", "context = 128\nsliding_per_full = -1"), "model.sliding_per_full must lie in 0"),
        (("context = 128", "context = 128\nfull_rope_fraction = 1.5"), "model.full_rope_fraction must lie in 0 … 1"),
        (("context = 128", "context = 128\nfull_rope_theta = 0"), "model.full_rope_theta must lie in"),
        (("experts_per_token = 2", "experts_per_token = 5"), "model.experts_per_token must lie in 1 … 4, found 5"),
        (("\nkv_heads = 1", "\nkv_heads = 3"), "model.kv_heads must lie in 1 … 2, found 3"),
        (("\nheads = 2\nhead_dim = 16\nkv_heads = 1", "\nheads = 3\nhead_dim = 16\nkv_heads = 2"), "must divide"),
        (("\nhead_dim = 16", "\nhead_dim = 15"), "model.head_dim must be even, found 15"),
        (("canvas_length = 8", "canvas_length = 129"), "canvas_length must be at most the model's context (128)"),
        (("length = 32", "length = 129"), "data.length must be at most the model's context (128), found 129"),
        (("[run]", "[objective]\nshortest_canvas = 9\n[run]"), "objective.shortest_canvas must be at most"),
        (("[run]", "[objective]\nrepair_share = 0.5\n[run]"), "needs objective.infill_share above 0"),
        (("rate = 1e-2", "beta1 = 1.0"), "optimizer.beta1 must lie in"),
        (("rate = 1e-2", "beta2 = -0.1"), "optimizer.beta2 must lie in"),
        (("threads = 1", "threads = 100000"), "run.threads must lie in 0 … 1024, found 100000"),
        (("threads = 1", "seed = -1"), "run.seed must lie in 0 … 2147483647, found -1"),
        (("threads = 1", "seed = 1" + "0" * 5000), "cannot be read as TOML"),
    ],
)
def test_a_wrong_configuration_is_refused_in_one_line(folder, change, message):
    path = folder / "wrong.toml"
    path.write_text(CONFIG.format(out="wrong", steps=1).replace(*change))
    with pytest.raises(DataError, match=re.escape(message)) as error:
        read_train_config(path)
    assert "\n" not in str(error.value)


def test_broken_training_text_is_named_with_its_line(folder):
    (folder / "broken.jsonl").write_text('{"text": "fine"}\n{"txt": 1}\n')
    path = folder / "broken.toml"
    path.write_text(CONFIG.format(out="broken", steps=1).replace('train = "text.jsonl"', 'train = "broken.jsonl"'))
    with pytest.raises(DataError, match="line 2"):
        train(read_train_config(path), lambda report: None)


def test_minutes_end_a_piece(folder):
    started = time.monotonic()
    config = plan(folder, "short", 100_000, "minutes = 0.02\n")
    train(config, lambda report: None)
    assert time.monotonic() - started < 30


def test_two_processes_train_as_one_that_averages_both_batches(folder):
    config = plan(folder, "ranks", 3)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    child = subprocess.run(
        [*command, "-m", "scumble", "train", str(folder / "ranks.toml"), "--json"], capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    lines = list(read_metrics(folder / "ranks"))
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

"""The training loop: it learns, it resumes exactly, it refuses what it cannot use, and what it writes can be run."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from scumble import LLM, DataError, GenerationConfig
from scumble.checkpoint import load_checkpoint
from scumble.text import Tokenizer
from scumble.train import loop
from scumble.train.config import read_train_config
from scumble.train.loop import read_metrics, train

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


def test_a_run_with_another_configuration_is_not_resumed(folder):
    train(plan(folder, "fixed", 2), lambda report: None)
    changed = folder / "fixed.toml"
    changed.write_text(changed.read_text().replace("rate = 1e-2", "rate = 2e-2"))
    with pytest.raises(DataError, match=r"optimizer\.rate"):
        train(read_train_config(changed), lambda report: None)


def test_a_damaged_state_is_named(folder):
    config = plan(folder, "damaged", 2)
    train(config, lambda report: None)
    state = folder / "damaged" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"state\.safetensors.*not a whole training state"):
        train(config, lambda report: None)


def test_a_checkpoint_is_fine_tuned(folder):
    first = train(plan(folder, "base", 3), lambda report: None)
    text = CONFIG.format(out="tuned", steps=2) + f'init = "{first}"\n'
    (folder / "tuned.toml").write_text("[data]" + text.split("[data]")[1])
    tuned = train(read_train_config(folder / "tuned.toml"), lambda report: None)
    before, after = load_checkpoint(first).state_dict(), load_checkpoint(tuned).state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)


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
    ],
)
def test_a_wrong_configuration_is_refused_in_one_line(folder, change, message):
    path = folder / "wrong.toml"
    path.write_text(CONFIG.format(out="wrong", steps=1).replace(*change))
    with pytest.raises(DataError, match=message.replace("[", r"\[")) as error:
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

    model, specials = loop.prepare_model(config, Tokenizer.from_folder(config.data.tokenizer))
    model.train().requires_grad_(True)
    optimizer = loop._optimizer(model, config)
    batches = loop._batches(config, config.data.train, Tokenizer.from_folder(config.data.tokenizer), specials, 8, "")
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

"""What training cannot use is refused before the first step, in one line that says what to do."""

import json
import os
import re

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend

from scumble import DataError, ScumbleError
from scumble.train.loop import train
from scumble.train.packed import open_packed
from scumble.train.read_config import read_train_config

from .runs import CONFIG, edit, plan, tuning_plan


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
    with pytest.raises(DataError, match=r"no tokenizer\.json in .*python tools/corpus tokenizer"):
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


@pytest.mark.parametrize(
    ("share", "says"),
    [(0.5, r"share of the repair rows' canvases and needs .* found 0.0"), (1.5, "draft_share must lie in 0 … 1")],
)
def test_a_share_of_nothing(folder, share, says):
    with pytest.raises(DataError, match=says):
        plan(folder, "share", 1, f"[objective]\ndraft_share = {share}\n")


BOMBS = {
    "a list in a list": "a = " + "[" * 900 + "]" * 900,
    "far deeper": "a = " + "[" * 100_000,
    "a table in a table": "[" + "a." * 5000 + "a]",
    "not closed": "[",
    "a number of 10,000 digits": "[run]\nsteps = " + "9" * 10_000,
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_a_configuration_that_is_none(tmp_path, text):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(DataError) as caught:
        read_train_config(tmp_path / "c.toml")
    assert "c.toml" in str(caught.value)
    assert len(str(caught.value)) < 700


def test_pipes_and_folders_are_no_configuration(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "folder.toml").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(DataError, match="not a regular file"):
            read_train_config(tmp_path / f"{name}.toml")


@pytest.mark.parametrize(
    ("line", "says"),
    [("nope", "line 2: cannot be read"), ("[1]", "line 2: must be an object"), ('{"text": 5}', "line 2: must be"),
     ('{"text": "x", "a": ' + "[" * 500 + "]" * 500 + "}", "line 2: cannot be read: nested too deep"),
     ("[" * 100_000, "cannot be read"), ('{"text": "\\ud800"}', "lone surrogate")],
)  # fmt: skip
def test_lines_that_are_no_documents(folder, line, says):
    (folder / "odd.jsonl").write_text('{"text": "def f(): pass"}\n' + line)
    plan(folder, "odd", 1)
    with pytest.raises(ScumbleError, match=says):
        train(edit(folder, "odd", ('train = "text.jsonl"', 'train = "odd.jsonl"')), lambda report: None)


def test_a_pipe_as_training_data(folder):
    os.mkfifo(folder / "pipe.jsonl")
    os.mkfifo(folder / "pipe.bin")
    (folder / "pipe.json").write_text('{"documents": 1, "tokens": 1}')
    plan(folder, "odd", 1)
    for name in ("pipe.jsonl", "pipe.bin"):
        with pytest.raises(DataError, match="is a named pipe, not a regular file"):
            train(edit(folder, "odd", ('train = "text.jsonl"', f'train = "{name}"')), lambda report: None)
        plan(folder, "odd", 1)


@pytest.mark.parametrize(
    "about", ["[]", "{}", '{"documents": "x", "tokens": 3}', "null", '{"documents": -1, "tokens": 0}']
)
def test_packed_tokens_with_a_strange_description(folder, about):
    np.array([5, 6, 7], "<u2").tofile(folder / "strange.bin")
    np.array([0, 2, 1, 3], "<i8").tofile(folder / "strange.offsets")
    (folder / "strange.json").write_text(about)
    with pytest.raises(DataError, match="packed tokens"):
        open_packed(folder / "strange")
    (folder / "strange.json").write_text('{"documents": 3, "tokens": 3}')
    with pytest.raises(DataError, match="their offsets must rise from 0"):
        open_packed(folder / "strange")

"""The tiny training runs of these tests: a plan as text, and what tests change in it."""

from collections.abc import Callable
from pathlib import Path

from scumble.train.read_config import read_train_config
from scumble.train.record import Report

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


def plan(folder: Path, out: str, steps: int, extra: str = ""):
    path = folder / f"{out}.toml"
    path.write_text(CONFIG.format(out=out, steps=steps) + extra)
    return read_train_config(path)


def edit(folder: Path, out: str, *changes: tuple[str, str]):
    """The plan of `plan(folder, out, …)` with some of its text replaced."""
    path = folder / f"{out}.toml"
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return read_train_config(path)


def tuning_plan(folder: Path, out: str, first: Path, *changes: tuple[str, str]):
    path = folder / f"{out}.toml"
    text = CONFIG.format(out=out, steps=2) + f'init = "{first}"\n'
    path.write_text("[data]" + text.split("[data]")[1])
    return edit(folder, out, *changes)


def interrupted_at(step: int, seen: list[Report]) -> Callable[[Report], None]:
    """A report function that keeps what it is told and is interrupted, as by Ctrl-C, after that step."""

    def report(line: Report) -> None:
        seen.append(line)
        if line.step == step:
            raise KeyboardInterrupt

    return report

"""A tiny random model whose tokenizer has the markers of infilling and repair, a few functions, and two problems in
HumanEval's form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend

from one_thread import one_thread_for_the_module  # noqa: F401
from scumble import LLM
from tiny import EOS, save_folder, tiny_model, tiny_tokenizer

MARKERS = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|repair|>"]

FUNCTIONS = [
    'def mean(values):\n    """Their mean."""\n    total = sum(values)\n    return total / len(values)\n',
    'def area(radius):\n    """Area of a circle."""\n    return 3.14159 * radius ** 2\n',
    "def first(items, default=None):\n    for item in items:\n        return item\n    return default\n",
    'def count(text, one):\n    """How often?"""\n    found = [c for c in text if c == one]\n    return len(found)\n',
]
PROBLEMS = [
    {
        "task_id": "Tiny/0",
        "prompt": 'def double(x):\n    """Twice x."""\n',
        "canonical_solution": "    y = x + x\n\n    return y\n",
        "test": "def check(f):\n    assert f(2) == 4\n    assert f(-1) == -2\n",
        "entry_point": "double",
    },
    {
        "task_id": "Tiny/1",
        "prompt": 'import math\n\ndef root(x):\n    """The square root, 0 for negative numbers."""\n',
        "canonical_solution": "    if x < 0:\n        return 0\n    return math.sqrt(x)\n",
        "test": "def check(f):\n    assert f(9) == 3\n    assert f(-9) == 0\n",
        "entry_point": "root",
    },
]


def make_folder(folder: Path, markers: list[str]) -> Path:
    backend: Backend = tiny_tokenizer()
    backend.add_special_tokens(markers)
    model = tiny_model(vocab_size=backend.get_vocab_size())
    model.embed_tokens.weight[EOS] *= 3  # a token that is often sure: some answers end by themselves, and soon
    save_folder(folder, model, tokenizer=True, max_denoising_steps=2)
    backend.save(str(folder / "tokenizer.json"))
    return folder


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("evaluated") / "tiny", MARKERS)


@pytest.fixture(scope="session")
def llm(folder: Path) -> LLM:
    return LLM.load(folder, dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def unmarked(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """The same without markers: it can only continue."""
    return LLM.load(make_folder(tmp_path_factory.mktemp("unmarked") / "tiny", []), dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The functions as --data takes them; two packages."""
    records = [{"text": text, "package": f"package{place % 2}"} for place, text in enumerate(FUNCTIONS)]
    return write_lines(tmp_path_factory.mktemp("data") / "functions.jsonl", records)


@pytest.fixture(scope="session")
def human_eval(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("human_eval") / "HumanEval.jsonl", PROBLEMS)


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command line in this process; expects one line on stderr, nothing on stdout -> the line."""
    from scumble.cli.main import main

    def run(code: int, *arguments: object) -> str:
        assert main([str(one) for one in arguments]) == code
        out, err = capfd.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith("scumble: error: ")
        assert "this is a bug" not in err
        return err

    return run

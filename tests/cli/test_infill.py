"""`scumble generate --suffix` and `--repair`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scumble import LLM, GenerationConfig
from scumble.cli.main import main

from .conftest import SPECIAL, make_folder

MARKERS = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|repair|>"]
BEFORE, DAMAGED, AFTER = "def f(x):\n    ", "retrun x", "\n"


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("marked"), special=[*SPECIAL, *MARKERS])


@pytest.mark.parametrize(
    ("options", "suffix", "damaged"),
    [
        (["--suffix", AFTER], AFTER, None),
        (["--suffix", ""], "", None),
        (["--suffix", AFTER, "--repair", DAMAGED], AFTER, DAMAGED),
        (["--repair", DAMAGED], "", DAMAGED),
    ],
)
def test_the_text_in_the_middle(
    capfd: pytest.CaptureFixture[str], marked: Path, options: list[str], suffix: str, damaged: str | None
) -> None:
    llm = LLM.load(marked)
    request = llm.fill_request(BEFORE, suffix, GenerationConfig(seed=3, max_new_tokens=20), damaged)
    wanted = llm.generate_ids(request.prompt, request.config, draft=request.draft)
    arguments = ["generate", BEFORE, *options, "--model", str(marked), "--seed", "3", "-n", "20", "--json"]
    assert main(arguments) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["token_ids"] == list(wanted.token_ids)
    assert found["prompt_tokens"] == len(request.prompt)


def test_echo_prints_both_sides_too(capfd: pytest.CaptureFixture[str], marked: Path) -> None:
    wanted = LLM.load(marked).repair(BEFORE, DAMAGED, AFTER, GenerationConfig(seed=3, max_new_tokens=20)).text
    arguments = ["generate", BEFORE, "--repair", DAMAGED, "--suffix", AFTER, "--model", str(marked), "--seed", "3"]
    assert main([*arguments, "-n", "20", "--echo"]) == 0
    assert capfd.readouterr().out == BEFORE + wanted + AFTER


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [(["--repair", ""], 2, "damaged text is empty"), (["--suffix", "", "--repair", ""], 2, "damaged text is empty")],
)
def test_an_empty_damaged_text(
    capfd: pytest.CaptureFixture[str], marked: Path, options: list[str], code: int, said: str
) -> None:
    assert main(["generate", BEFORE, *options, "--model", str(marked)]) == code
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err


def test_a_model_without_markers(capfd: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main(["generate", BEFORE, "--repair", DAMAGED, "--model", str(folder)]) == 1
    assert "no fill-in-the-middle markers" in capfd.readouterr().err


def test_help_shows_how(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--help"]) == 0
    assert "--repair" in capfd.readouterr().out

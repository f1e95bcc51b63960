"""`scumble generate`: what goes where."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scumble import LLM, GenerationConfig
from scumble.cli.main import main
from scumble.cli.terminal import visible
from scumble.events import Committed

from .conftest import make_folder, scumble

PROMPT = "def mean"


@pytest.fixture(scope="module")
def expected(folder: Path) -> str:
    return LLM.load(folder).generate(PROMPT, GenerationConfig(seed=3, max_new_tokens=20)).text


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """In this process: quick, since torch is there already."""
    code = main([str(one) for one in arguments])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def test_piped_output_is_the_text_alone(folder: Path, expected: str) -> None:
    done = scumble("generate", PROMPT, "--model", folder, "--seed", 3, "-n", 20)
    assert done.returncode == 0
    assert done.stdout.decode().removesuffix("\n") == expected.removesuffix("\n")
    assert done.stderr == b""


@pytest.mark.parametrize("how", ["dash", "pipe", "file"])
def test_prompts_come_from_stdin_and_files(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path, expected: str,
    how: str,
) -> None:  # fmt: skip
    (tmp_path / "prompt").write_text(PROMPT + "\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PROMPT.encode() + b"\n")))
    source = {"dash": ["-"], "pipe": [], "file": ["--file", tmp_path / "prompt"]}[how]
    code, out, err = run(capfd, "generate", *source, "--model", folder, "--seed", 3, "-n", 20)
    assert (code, err) == (0, "")
    assert out.removesuffix("\n") == expected.removesuffix("\n")


def test_echo_gives_the_whole_text(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, expected: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PROMPT.encode() + b"\n")))
    code, out, err = run(capfd, "generate", "--echo", "--model", folder, "--seed", 3, "-n", 20)
    assert (code, err) == (0, "")
    assert out.removesuffix("\n") == (PROMPT + expected).removesuffix("\n")


def test_echo_of_a_bad_request_prints_nothing(capfd: pytest.CaptureFixture[str], folder: Path) -> None:
    code, out, err = run(capfd, "generate", PROMPT, "--echo", "--model", folder, "--canvas-length", 1000)
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_json_holds_everything(capfd: pytest.CaptureFixture[str], folder: Path, expected: str) -> None:
    code, out, err = run(
        capfd, "generate", PROMPT, "--model", folder, "--seed", 3, "-n", 20, "--json", "--logprobs", 2, "--steps", 4
    )
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert set(found) == {
        "text", "token_ids", "finish_reason", "prompt_tokens", "passes", "evaluations", "reads", "seconds",
        "first_text_seconds", "tokens_per_second", "logprobs", "thinking", "thinking_tokens", "thinking_closed",
        "tool_calls", "malformed_tool_calls", "model", "config",
    }  # fmt: skip
    assert found["finish_reason"] in ("stop", "length")
    assert len(found["logprobs"]) == len(found["token_ids"]) <= 20
    assert len(found["logprobs"][0]["top"]) == 2
    assert found["config"]["max_denoising_steps"] == 4
    assert found["config"]["max_new_tokens"] == 20
    assert found["config"]["canvas_length"] == 16
    assert found["model"]["path"] == str(folder)
    assert all(1 <= passes <= 4 for passes in found["passes"])
    assert found["evaluations"] == sum(found["passes"])


def test_the_best_of_several(capfd: pytest.CaptureFixture[str], folder: Path) -> None:
    options = ("--model", folder, "-n", 20, "--steps", 4, "--confidence", 0, "--ignore-eos", "--best-of", 3)
    code, out, err = run(capfd, "generate", PROMPT, *options, "--json")
    found = json.loads(out)
    assert (code, err, found["config"]["best_of"]) == (0, "", 3)
    assert found["evaluations"] == 3 * sum(found["passes"])
    code, out, err = run(capfd, "generate", PROMPT, *options)
    assert (code, out.removesuffix("\n")) == (0, found["text"].removesuffix("\n"))
    assert err == ""
    code, screen = on_a_terminal("generate", PROMPT, *options)
    assert code == 0
    assert f"{sum(found['passes'])} passes" in screen
    assert f"{found['evaluations']} canvas evaluations" in screen


def test_autoregressive_and_stop(capfd: pytest.CaptureFixture[str], folder: Path) -> None:
    options = ("--model", folder, "--decoder", "autoregressive", "--top-k", 5, "--ignore-eos", "-n", 12, "--json")
    code, out, _ = run(capfd, "generate", PROMPT, *options)
    whole = json.loads(out)
    assert code == 0
    assert len(whole["token_ids"]) == 12
    letter = next(c for c in whole["text"] if c.isascii() and c.isprintable())
    _, out, _ = run(capfd, "generate", PROMPT, *options, "--stop", letter, "--stop", "never there")
    assert json.loads(out)["text"] == whole["text"][: whole["text"].index(letter)]
    assert json.loads(out)["finish_reason"] == "stop"


def test_an_autoregressive_answer_says_what_it_ran_with(capfd: pytest.CaptureFixture[str]) -> None:
    """The embedded model's candidates are for canvases."""
    code, out, _ = run(capfd, "generate", PROMPT, "--decoder", "autoregressive", "-n", 2, "--json")
    config = json.loads(out)["config"]
    assert (code, config["best_of"], config["revisions"]) == (0, 1, 0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--decoder", "autoregressive", "--steps", 3), "--steps: for canvases, without effect"),
        (("--decoder", "autoregressive", "--canvas-length", 8, "--best-of", 2), "--canvas-length, --best-of: "),
        (("--logprobs", 2), "with --json, or as colours"),
    ],
)
def test_an_option_without_effect_is_refused(
    capfd: pytest.CaptureFixture[str], folder: Path, options: tuple[object, ...], says: str
) -> None:
    code, out, err = run(capfd, "generate", PROMPT, "--model", folder, *options)
    assert (code, out) == (2, "")
    assert says in err


def on_a_terminal(*arguments: object) -> tuple[int, str]:
    """Run with stdin, stdout and stderr on one pseudo-terminal -> exit code, everything written to it."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "scumble.cli", *map(str, arguments)], stdin=slave, stdout=slave, stderr=slave,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"},
    )  # fmt: skip
    os.close(slave)
    data = b""
    while True:
        try:
            block = os.read(master, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not block:
            break
        data += block
    os.close(master)
    return process.wait(30), data.decode()


def test_a_terminal_sees_the_canvas_and_then_the_text_once(folder: Path, expected: str) -> None:
    code, seen = on_a_terminal("generate", PROMPT, "--model", folder, "--seed", 3, "-n", 20)
    assert code == 0
    assert "settled" in seen
    assert "tokens a pass" in seen
    last = seen[seen.rindex("\x1b[J") :]  # after the drawing was erased for the last time
    assert "settled" not in last
    assert visible(expected).rsplit("\n", 1)[-1] in last
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")  # the cursor is back


def test_echo_on_a_terminal_leaves_the_whole_text_once(folder: Path, expected: str) -> None:
    before = "# the first line\n"
    code, seen = on_a_terminal("generate", before + PROMPT, "--echo", "--model", folder, "-n", 20)
    assert code == 0
    assert seen.count("# the first line") == 1  # put out once, above the drawing, and never drawn
    last = seen[seen.rindex("\x1b[J") :]
    assert PROMPT in last


@pytest.fixture(scope="module")
def slow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a long context, so that there is time to interrupt it."""
    return make_folder(tmp_path_factory.mktemp("slow"), max_position_embeddings=1_000_000)


def test_ctrl_c_keeps_what_was_committed(slow_folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "scumble.cli", "generate", PROMPT, "--model", str(slow_folder), "-n", "900000",
         "--ignore-eos"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job would ignore it
    )  # fmt: skip
    assert process.stdout is not None
    first = os.read(process.stdout.fileno(), 1)  # something is committed
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == b""
    assert (first + out).endswith(b"\n")


def test_ctrl_c_with_json(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, expected: str
) -> None:
    whole = LLM.stream_request

    def interrupted(*arguments: Any, **inputs: Any):
        for event in whole(*arguments, **inputs):
            yield event
            if isinstance(event, Committed):
                raise KeyboardInterrupt

    monkeypatch.setattr(LLM, "stream_request", interrupted)
    code, out, err = run(capfd, "generate", PROMPT, "--model", folder, "--seed", 3, "-n", 20, "--json")
    assert (code, err) == (130, "")
    found = json.loads(out)
    assert found["finish_reason"] == "interrupted"
    assert len(found["token_ids"]) == 16
    assert len(found["passes"]) == 1
    assert found["text"]
    assert expected.startswith(found["text"])

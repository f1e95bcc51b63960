"""Bad input: one clear line, the right exit code, no traceback."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scumble.cli.main import main

from .conftest import scumble

P = "def mean"


def fails(capfd: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """Run in this process; expects one line on stderr, nothing on stdout -> the line."""
    assert main([str(one) for one in arguments]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("scumble: error: ")
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--no-such-option"], 2, "--no-such-option"),
        (["-n", "many"], 2, "--max-new-tokens"),
        (["-n", "0"], 2, "max_new_tokens"),
        (["-n", "1000000000"], 2, "max_new_tokens"),
        (["-n", "10" * 20], 2, "max_new_tokens"),
        (["--steps", "0"], 2, "max_denoising_steps"),
        (["--temperature", "-1"], 2, "temperature"),
        (["--temperature", "nan"], 2, "temperature"),
        (["--temperature", "inf"], 2, "temperature"),
        (["--entropy-bound", "0"], 2, "entropy_bound"),
        (["--canvas-length", "1000"], 2, "canvas_length"),
        (["--canvas-length", "--5"], 2, "canvas_length must be a whole number in 1 … 1048576 or 'auto', found '--5'"),
        (["--canvas-length", "9" * 5000], 2, "canvas_length"),
        (["--echo", "--json"], 2, "--echo is for text"),
        (["--seed", "-1"], 2, "seed"),
        (["--decoder", "magic"], 2, "decoder"),
        (["--top-p", "2"], 2, "top_p"),
        (["--top-k", "3"], 2, "autoregressive"),
        (["--logprobs", "99"], 2, "logprobs"),
        (["--stop", ""], 2, "stop"),
        (["--dtype", "int3"], 2, "dtype"),
        (["--device", "abacus"], 2, "and present; found 'abacus'\n"),
        (["--device", "xla"], 2, "and present; found 'xla'\n"),
        (["--device", "cuda:x"], 2, "found 'cuda:x': "),
        (["--delay", "-1"], 2, "delay"),
        (["--file", "x"], 2, "not both"),
    ],
)
def test_bad_options(
    capfd: pytest.CaptureFixture[str], folder: Path, arguments: list[str], code: int, said: str
) -> None:
    assert said in fails(capfd, code, "generate", P, "--model", folder, *arguments)


def test_bad_prompts(capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    assert "empty" in fails(capfd, 2, "generate", "", "--model", folder)
    assert "context holds 256" in fails(capfd, 2, "generate", "é" * 400, "--model", folder)
    assert "cannot be read" in fails(capfd, 2, "generate", "--file", tmp_path / "none", "--model", folder)
    assert "not valid Unicode" in fails(capfd, 2, "generate", "a\udcffb", "--model", folder)


def test_invalid_utf8_on_stdin(
    capfd: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff")))
    assert "0xff at offset 2" in fails(capfd, 2, "generate", "--model", folder)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n")))
    assert "line 1" in fails(capfd, 2, "chat", "--model", folder)


def test_bad_checkpoints(capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    for arguments in (["generate", P, "--model"], ["info"]):
        assert "no such folder" in fails(capfd, 1, *arguments, tmp_path / "nowhere")

        pickled = tmp_path / "pickled"
        pickled.mkdir(exist_ok=True)
        (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04.")
        assert "pickle" in fails(capfd, 1, *arguments, pickled)

        cut = tmp_path / "cut"
        shutil.copytree(folder, cut, dirs_exist_ok=True)
        whole = (folder / "model.safetensors").read_bytes()
        (cut / "model.safetensors").write_bytes(whole[: len(whole) // 2])
        assert "truncated" in fails(capfd, 1, *arguments, cut)

        other = tmp_path / "other"
        shutil.copytree(folder, other, dirs_exist_ok=True)
        (other / "config.json").write_text('{"model_type": "llama"}')
        assert "llama" in fails(capfd, 1, *arguments, other)


def test_unknown_command_and_no_command(capfd: pytest.CaptureFixture[str]) -> None:
    assert "generat" in fails(capfd, 2, "generat")
    assert main([]) == 2
    assert "Usage" in capfd.readouterr().out


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_the_traceback(capfd: pytest.CaptureFixture[str], tmp_path: Path, place: str) -> None:
    arguments = ["info", str(tmp_path / "nowhere")]
    arguments = ["--debug", *arguments] if place == "before" else [*arguments, "--debug"]
    assert main(arguments) == 1
    err = capfd.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("scumble: error: ")


def test_a_bug_is_one_line_too(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: object) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("scumble.cli.info.gather", broken)
    assert "ZeroDivisionError: two lines" in fails(capfd, 1, "info")


def test_help_and_version_do_not_import_torch() -> None:
    code = (
        "import sys; from scumble.cli.main import main\n"
        "for words in ('--help', 'generate --help', 'chat --help', 'info --help', '--version'):\n"
        "    assert main(words.split()) == 0\n"
        "sys.exit('torch' in sys.modules or 'tokenizers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for said in (b"scumble generate", b"scumble chat", b"scumble info", b"Examples"):
        assert said in done.stdout


def test_only_commands_that_exist_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    from importlib.util import find_spec

    from scumble.cli.main import COMMANDS

    assert main(["--help"]) == 0
    listed = capfd.readouterr().out
    for name, entry in COMMANDS.items():
        assert (entry.help in listed) == (find_spec(f"scumble.cli.{name}") is not None)


def test_a_full_disk_is_one_line(folder: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "scumble.cli", "generate", P, "--model", str(folder)],
            stdout=full, stderr=subprocess.PIPE, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"No space left" in done.stderr


def test_a_closed_pipe_is_quiet(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "scumble.cli", "generate", P, "--model", str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait(30)


@pytest.mark.parametrize(("closed", "code", "out"), [("<&-", 2, False), (">&-", 0, False), ("2>&-", 0, True)])
def test_closed_streams(folder: Path, closed: str, code: int, out: bool) -> None:
    """A closed stdin is an empty one; what goes to a closed stdout or stderr is gone, and no error."""
    prompt = [] if closed == "<&-" else [P]
    words = [sys.executable, "-m", "scumble.cli", "generate", *prompt, "--model", str(folder), "-n", "4"]
    done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *words], capture_output=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert bool(done.stdout) == out
    assert (b"the prompt is empty" in done.stderr) == (code == 2)
    assert b"bug" not in done.stderr


def test_a_closed_stdin_is_no_terminal(folder: Path) -> None:
    words = [sys.executable, "-m", "scumble.cli", "chat", "--model", str(folder)]
    done = subprocess.run(["sh", "-c", 'exec "$@" <&-', "sh", *words], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_module_runs() -> None:
    assert scumble("--version").stdout.startswith(b"scumble ")


def test_waiting_threads_sleep_unless_the_user_says_otherwise(monkeypatch):
    from scumble.cli.main import SPINS, wait_shortly

    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    wait_shortly()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    wait_shortly()
    assert os.environ["GOMP_SPINCOUNT"] == SPINS
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    wait_shortly()
    assert "GOMP_SPINCOUNT" not in os.environ

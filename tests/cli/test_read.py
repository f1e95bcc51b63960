"""`scumble read` on lines with and without their right labels."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scumble.cli.main import app

ASK = ["--question", "Is it so?", "--label", "yes", "--label", "no"]


def read(tmp_path: Path, lines: list[object], *options: str):
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return CliRunner().invoke(app, ["read", str(file), *options])


def test_every_line_gets_probabilities_and_keeps_its_fields(tmp_path: Path) -> None:
    lines = [{"text": "a {{answer}} b {{x}}", "id": 3, "truth": "yes"}, {"text": "one\u2028line", "truth": "no"}] * 3
    done = read(tmp_path, lines, *ASK, "--truth", "truth")
    assert done.exit_code == 0, done.output
    out = [json.loads(line) for line in done.stdout.strip().split("\n")]
    assert [{name: row[name] for name in line} for line, row in zip(lines, out, strict=True)] == lines
    assert all(set(row["probabilities"]) == {"yes", "no"} for row in out)
    assert "calibration error" in done.stderr
    assert "--temperature" in done.stderr


@pytest.mark.parametrize(
    ("line", "options", "words"),
    [
        ({"text": "a"}, ["--question", "?", "--label", "yes"], "--label must be given at least twice"),
        ({"text": "a"}, ["--label", "yes", "--label", "no"], "--question is missing"),
        ({"text": "a", "t": "maybe"}, [*ASK, "--truth", "t"], "line 1: t must be one of the labels"),
        ({"no": 1}, ASK, "line 1 must be an object"),
        ({"text": "a"}, [*ASK, "--temperature", "0"], "temperature must lie in"),
    ],
)
def test_refused(tmp_path: Path, line: object, options: list[str], words: str) -> None:
    done = read(tmp_path, [line], *options)
    assert done.exit_code != 0
    assert words in str(done.exception) + done.output

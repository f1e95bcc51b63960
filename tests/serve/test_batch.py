"""A file of requests: answered, refused by the line, killed in the middle and taken up again."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from serving import SHORT, until

from scumble.cli.main import main
from scumble.errors import InvalidRequest
from scumble.serve.batch import BatchError, Output, read_batch


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def request(number, url="/v1/completions", **body):
    return {"custom_id": f"r{number}", "method": "POST", "url": url,
            "body": {"prompt": f"the canvas {number}", "max_tokens": 6, **SHORT, **body}}  # fmt: skip


def answers(path):
    return {one["custom_id"]: one["response"] for one in map(json.loads, path.read_text().splitlines())}


def text(response):
    return response["body"]["choices"][0]["text"]


def test_every_request_has_its_answer(llm, tmp_path, capsys):
    chat = {"custom_id": "chat", "url": "/v1/chat/completions",
            "body": {"messages": [{"role": "user", "content": "paint"}], "max_tokens": 4, **SHORT}}  # fmt: skip
    lines = [*(request(number) for number in range(5)), chat, request(9, temperature=-1)]
    source, target = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    assert main(["batch", str(source), str(target), "--model", str(llm.folder), "--at-once", "3"]) == 0
    found = answers(target)
    assert set(found) == {line["custom_id"] for line in lines}
    assert found["r9"]["status_code"] == 400
    assert found["r9"]["body"]["error"]["code"] == "invalid_value"
    assert found["chat"]["body"]["usage"]["completion_tokens"] == 4
    assert "7 of 7 answered, 1 refused" in capsys.readouterr().err
    before = target.read_bytes()
    assert main(["batch", str(source), str(target), "--model", str(llm.folder)]) == 0
    assert target.read_bytes() == before, "nothing is done twice"


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_been(llm, tmp_path):
    lines = [request(number, max_tokens=100) for number in range(8)]
    source, whole, cut = write(tmp_path / "in.jsonl", lines), tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    command = ["batch", str(source), str(cut), "--model", str(llm.folder), "--at-once", "2"]
    run = subprocess.Popen([sys.executable, "-m", "scumble", *command])
    try:
        until(lambda: cut.exists() and cut.read_bytes().count(b"\n") >= 2, 120)
    finally:
        run.kill()
        run.wait()
    with cut.open("ab") as file:
        file.write(b'{"id": "batch_req_half a li')
    assert len(cut.read_bytes().splitlines()) < 9
    assert main(command) == 0
    assert main([*command[:2], str(whole), *command[3:]]) == 0
    assert len(cut.read_text().splitlines()) == 8
    assert {key: text(one) for key, one in answers(cut).items()} == {
        key: text(one) for key, one in answers(whole).items()
    }


@pytest.mark.parametrize(
    "lines",
    [
        [], ["{"], ["[]"], ['{"custom_id": 5}'], ['{"custom_id": "a", "url": "/admin/keys", "body": {}}'],
        ['{"custom_id": "a", "url": "/v1/completions", "method": "GET", "body": {}}'],
        ['{"custom_id": "a", "url": "/v1/completions", "body": {"stream": true}}'],
        [json.dumps(request(1)), json.dumps(request(1))],
    ],
)  # fmt: skip
def test_a_wrong_input_is_refused_before_anything_is_computed(tmp_path, lines):
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(InvalidRequest):
        read_batch(path)


def test_an_output_of_something_else_is_left_alone(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text('{"custom_id": "other"}\n')
    with pytest.raises(BatchError, match="something else"):
        Output(path, {"r1"})
    assert path.read_text() == '{"custom_id": "other"}\n'
    first = Output(tmp_path / "new.jsonl", {"r1"})
    with pytest.raises(BatchError, match="another run"):
        Output(tmp_path / "new.jsonl", {"r1"})
    first.close()

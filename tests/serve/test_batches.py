"""Files and batches through OpenAI's own client: made, answered, cancelled, killed and taken up again."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from typing import Any

import httpx
import openai
import pytest
from serving import SHORT, running, until
from test_batch import request

from scumble.serve import batch_runs, kept_files
from scumble.serve.errors import ApiError
from scumble.serve.kept_files import FileStore
from scumble.serve.keys import Keys
from scumble.serve.store import open_store

URL = "/v1/completions"


@pytest.fixture(scope="module")
def kept(llm, tmp_path_factory):
    with running(llm, state=tmp_path_factory.mktemp("state")) as one:
        yield one


@pytest.fixture
def client(kept):
    with openai.OpenAI(base_url=f"{kept.url}/v1", api_key="none", max_retries=0) as one:
        yield one


def upload(client, lines):
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    return client.files.create(file=("requests.jsonl", content), purpose="batch")


def start(client, lines) -> Any:
    return client.batches.create(input_file_id=upload(client, lines).id, endpoint=URL, completion_window="24h")


def ended(client, batch, seconds=60) -> Any:
    until(lambda: client.batches.retrieve(batch.id).status in ("completed", "failed", "cancelled", "expired"), seconds)
    return client.batches.retrieve(batch.id)


def answered(client, batch) -> int:
    return client.batches.retrieve(batch.id).request_counts.completed


def answers(client, file_id):
    lines = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines), "nothing twice"
    return {line["custom_id"]: line["response"] for line in lines}


def test_a_batch_is_answered(client, kept):
    batch = start(client, [*(request(number) for number in range(6)), request(9, temperature=-1)])
    assert batch.status == "validating"
    done = ended(client, batch)
    assert done.status == "completed"
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (7, 6, 1)
    good, bad = answers(client, done.output_file_id), answers(client, done.error_file_id)
    assert set(good) == {f"r{number}" for number in range(6)}
    assert set(bad) == {"r9"}
    assert bad["r9"]["body"]["error"]["code"] == "invalid_value"
    seed = good["r3"]["body"]["choices"][0]["scumble"]["seed"]
    with kept.client() as http:
        live = http.post(URL, json={**request(3)["body"], "seed": seed}).json()
    assert live["choices"][0]["text"] == good["r3"]["body"]["choices"][0]["text"]
    assert client.batches.list(limit=1).data[0].id == done.id
    assert client.files.retrieve(done.output_file_id).purpose == "batch_output"
    assert {done.output_file_id, done.error_file_id, done.input_file_id} <= {one.id for one in client.files.list()}
    assert client.files.delete(done.input_file_id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(done.input_file_id)
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(done.id)


@pytest.mark.parametrize(
    "lines",
    [[{"custom_id": 5}], [request(1), request(1)], [request(1, url="/v1/chat/completions")], [request(1, stream=True)]],
    ids=["no request", "twice", "another url", "stream"],
)
def test_a_wrong_file_fails_as_a_whole_and_says_where(client, kept, lines):
    done = ended(client, start(client, lines))
    assert done.status == "failed"
    assert "line " in done.errors.data[0].message
    assert str(kept.service.settings.state) not in done.errors.data[0].message


def test_cancelling_keeps_what_is_there(client):
    long = start(client, [request(number, max_tokens=40) for number in range(300)])
    behind = start(client, [request(1)])
    with pytest.raises(openai.ConflictError):
        client.files.delete(long.input_file_id)
    assert client.batches.cancel(behind.id).status == "cancelled"
    until(lambda: answered(client, long) > 0, 60)
    assert client.batches.cancel(long.id).status == "cancelling"
    done = ended(client, long)
    assert done.status == "cancelled"
    assert 0 < len(answers(client, done.output_file_id)) < 300


def test_live_requests_go_first(client, kept):
    """While a batch is at work, no more than half of the places are taken by it."""
    batch = start(client, [request(number, max_tokens=40) for number in range(300)])
    until(lambda: client.batches.retrieve(batch.id).status == "in_progress", 60)
    slots, seen = kept.service.backend.slots, []
    for _ in range(5):
        seen.append(slots.running)
        client.completions.create(model="tiny", prompt="the canvas", max_tokens=4, extra_body=SHORT)
    assert max(seen) <= slots.max_running // 2
    client.batches.cancel(batch.id)
    ended(client, batch)


@pytest.mark.parametrize(
    ("data", "files", "status"),
    [
        ({"purpose": "batch"}, {"file": b"{}\n"}, 200),
        ({"purpose": "batch"}, {"file": ("../../etc/passwd", b"{}\n")}, 200),
        ({"purpose": "batch"}, {"file": b"x" * 3000}, 413),
        ({"purpose": "batch"}, {"file": b"x" * 9000}, 413),
        ({"purpose": "fine-tune"}, {"file": b"{}\n"}, 400),
        ({}, {"file": b"{}\n"}, 400),
        ({"purpose": "batch"}, {"other": b"{}\n"}, 400),
        ({"purpose": "batch", "more": "x"}, {"file": b"{}\n"}, 400),
        ({"purpose": "batch"}, None, 400),
    ],
)
def test_uploads(llm, tmp_path, data, files, status):
    with running(llm, state=tmp_path, max_file_bytes=2000, warm_up=False) as one, one.client() as http:
        answer = http.post("/v1/files", data=data, files=files)
        assert answer.status_code == status, answer.text
        if status == 200:
            assert "/" not in answer.json()["filename"]
        assert len(list((tmp_path / "files").iterdir())) == (2 if status == 200 else 0)
        for path in ("file-0", "file-" + "0" * 32, "..%2F..%2Fkeys.db", "%2e%2e"):
            assert http.get(f"/v1/files/{path}/content").status_code == 404


def test_there_is_room_for_so_much(llm, tmp_path):
    with running(llm, state=tmp_path, max_files_bytes=5000, warm_up=False) as one, one.client() as http:
        codes = [
            http.post("/v1/files", data={"purpose": "batch"}, files={"file": b"x" * 2000}).status_code for _ in range(3)
        ]
        assert codes == [200, 200, 413]


def test_files_and_batches_belong_to_their_key(llm, tmp_path):
    keys = Keys(open_store(tmp_path / "keys.db"))
    mine, theirs = (keys.create(name, ["generate"]) for name in ("mine", "theirs"))
    with running(llm, state=tmp_path) as one:
        ours = openai.OpenAI(base_url=f"{one.url}/v1", api_key=mine, max_retries=0)
        other = openai.OpenAI(base_url=f"{one.url}/v1", api_key=theirs, max_retries=0)
        with ours, other:
            done = ended(ours, start(ours, [request(1)]))
            assert done.status == "completed"
            assert list(other.files.list()) == []
            assert list(other.batches.list()) == []
            for look in (
                lambda: other.files.content(done.output_file_id), lambda: other.files.delete(done.input_file_id),
                lambda: other.batches.retrieve(done.id), lambda: other.batches.cancel(done.id),
                lambda: other.batches.create(
                    input_file_id=done.input_file_id, endpoint=URL, completion_window="24h"),
            ):  # fmt: skip
                with pytest.raises(openai.NotFoundError):
                    look()
            late = start(ours, [request(number, max_tokens=40) for number in range(500)])
            keys.revoke("mine")
            batches = one.service.batches
            assert batches is not None
            until(lambda: batches.get(late.id, "mine").is_over, 60)
            refused = batches.get(late.id, "mine")
            assert refused.counts["failed"] > 0, "who may no longer ask is no longer answered"


def test_a_server_without_a_folder_says_so(http):
    answer = http.get("/v1/files")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_state")


def test_a_batch_that_takes_too_long_ends_with_what_it_has(llm, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_runs, "WINDOW", 5)
    with running(llm, state=tmp_path) as one, openai.OpenAI(base_url=f"{one.url}/v1", api_key="x") as client:
        done = ended(client, start(client, [request(number, max_tokens=8) for number in range(4000)]))
        assert done.status == "expired"
        assert done.expired_at is not None
        assert done.output_file_id is not None
        answered = answers(client, done.output_file_id)
        assert 0 < len(answered) < 4000
        assert done.request_counts.completed == len(answered)
        assert done.request_counts.total == 4000


def test_a_batch_that_expired_while_no_server_ran_is_not_answered(llm, tmp_path, monkeypatch):
    """What is over when the server comes back is closed at once; the next batch is answered."""
    with running(llm, state=tmp_path) as one, openai.OpenAI(base_url=f"{one.url}/v1", api_key="x") as client:
        late = start(client, [request(number, max_tokens=300) for number in range(300)])
        until(lambda: client.batches.retrieve(late.id).status == "in_progress")
    state = json.loads((tmp_path / "batches" / f"{late.id}.json").read_text())
    (tmp_path / "batches" / f"{late.id}.json").write_text(
        json.dumps({**state, "created_at": 1000 + state["created_at"] - 2 * 86400})
    )
    with running(llm, state=tmp_path) as one, openai.OpenAI(base_url=f"{one.url}/v1", api_key="x") as client:
        assert ended(client, late).status == "expired"
        assert ended(client, start(client, [request(1)])).status == "completed"


def test_a_full_disk_pauses_a_batch_until_there_is_room(llm, tmp_path, monkeypatch):
    """Nothing half-written stays; live requests are answered meanwhile; when there is room, the batch goes on."""
    monkeypatch.setattr(batch_runs, "PAUSE", 0.1)
    is_full, write, tries = [True], os.write, []

    def limited(descriptor, data):
        if is_full[0] and data.startswith(b'{"id": "batch_req_'):
            tries.append(len(data))
            write(descriptor, data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", limited)
    with running(llm, state=tmp_path) as one, openai.OpenAI(base_url=f"{one.url}/v1", api_key="x") as client:
        batch = start(client, [request(number) for number in range(6)])
        until(lambda: len(tries) > 2)
        assert client.completions.create(model="tiny", prompt="the canvas", max_tokens=2, extra_body=SHORT).choices
        assert client.batches.retrieve(batch.id).status == "in_progress"
        is_full[0] = False
        done = ended(client, batch)
        assert done.status == "completed"
        assert done.output_file_id is not None
        assert len(answers(client, done.output_file_id)) == 6


def test_a_full_disk_refuses_what_cannot_be_kept(llm, tmp_path, monkeypatch):
    """A batch whose state cannot be written is refused with 507, not forgotten later."""
    with running(llm, state=tmp_path) as one, one.client() as http:
        uploaded = http.post("/v1/files", data={"purpose": "batch"}, files={"file": b"{}"}).json()["id"]

        def full(path, value):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(batch_runs, "write_json", full)
        ask = {"input_file_id": uploaded, "endpoint": URL, "completion_window": "24h"}
        refused = http.post("/v1/batches", json=ask)
        assert refused.status_code == 507
        assert refused.json()["error"]["code"] == "disk"
        monkeypatch.undo()
        assert http.get("/v1/batches").json()["data"] == []
        assert http.post("/v1/batches", json=ask).status_code == 200


def test_of_servers_that_share_a_folder_one_answers_its_batches_and_the_next_takes_over(llm, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_runs, "LOOK", 0.1)
    lines = [request(number, max_tokens=40) for number in range(40)]
    with running(llm, state=tmp_path) as second_to_end:
        other = openai.OpenAI(base_url=f"{second_to_end.url}/v1", api_key="x", max_retries=0)
        with other:
            upload(other, lines[:1])
            with running(llm, state=tmp_path) as later:
                client = openai.OpenAI(base_url=f"{later.url}/v1", api_key="x", max_retries=0)
                kept_by_both = upload(client, lines)
                for ask in (
                    client.batches.list, lambda: client.batches.retrieve("batch_x"),
                    lambda: client.files.delete(kept_by_both.id), lambda: start(client, lines),
                ):  # fmt: skip
                    with pytest.raises(openai.InternalServerError, match="another server process has the batches"):
                        ask()
                batch = start(other, lines)
                until(lambda: answered(other, batch) > 0, 60)
                second_to_end.server.should_exit = True
                until(lambda: _lists(client), 60)
                done = ended(client, batch, 120)
                assert done.status == "completed"
                assert done.output_file_id is not None
                assert len(answers(client, done.output_file_id)) == 40
                client.close()


def _lists(client) -> bool:
    try:
        return bool(client.batches.list().data)
    except openai.InternalServerError:
        return False


@pytest.mark.slow
def test_a_batch_outlives_kill_9(llm, tmp_path):
    """The process is killed while it answers; its successor over the same folder goes on, and ends with the texts that
    a run without a kill has."""
    command = [
        sys.executable, "-m", "scumble", "serve", str(llm.folder), "--served-model-name", "tiny",
        "--state", str(tmp_path), "--max-running", "4",
    ]  # fmt: skip

    def serve(port: int):
        process = subprocess.Popen([*command, "--port", str(port)], stderr=subprocess.DEVNULL)
        until(lambda: _is_ready(port), 120)
        return process, openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)

    lines = [request(number, max_tokens=300) for number in range(12)]
    process, client = serve(_free_port())
    try:
        batch = start(client, lines)
        until(lambda: answered(client, batch) >= 3, 120)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    process, client = serve(_free_port())
    try:
        done = ended(client, batch, 300)
        assert done.status == "completed"
        cut = answers(client, done.output_file_id)
        whole = answers(client, ended(client, start(client, lines), 300).output_file_id)
    finally:
        process.terminate()
        process.wait(60)

    def texts(found):
        return {name: one["body"]["choices"][0]["text"] for name, one in found.items()}

    assert texts(cut) == texts(whole)
    assert len(cut) == 12


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_an_upload_that_cannot_be_described_leaves_nothing(tmp_path, monkeypatch):
    def full(path, value):
        raise OSError(28, "No space left on device")

    store = FileStore(tmp_path / "files", 1000, 5000)
    monkeypatch.setattr(kept_files, "write_json", full)
    with pytest.raises(ApiError, match="could not be stored"):
        store.upload(io.BytesIO(b"x" * 10), "me", "one", "batch")
    assert list(store.folder.iterdir()) == []

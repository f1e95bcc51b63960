"""The audit log as an auditor reads it: whole, changed, cut short, pruned, written by several processes."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import SHORT, running

from scumble.cli.main import main
from scumble.serve.audit import AuditLog, text_digest
from scumble.serve.audit_review import prune, prune_texts, records, verify
from scumble.serve.chain import LOG, TEXTS, AuditError
from scumble.serve.keys import Keys
from scumble.serve.store import open_store


def filled(folder: Path, lines: int = 5) -> Path:
    log = AuditLog(folder)
    for number in range(lines):
        log.append("note", request=f"req_{number}")
    log.close()
    return folder


def test_a_log_is_whole(tmp_path):
    verdict = verify(filled(tmp_path))
    assert verdict.fault is None
    assert (verdict.lines, verdict.checkpoints, verdict.unsigned) == (6, 1, 0)
    for name in (LOG, "audit-key.pem"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0, "nobody else may read it"


@given(st.data())
def test_any_changed_byte_is_noticed(tmp_path_factory, data):
    folder = filled(tmp_path_factory.mktemp("log"))
    raw = bytearray((folder / LOG).read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.sampled_from([1, 2, 4, 8, 16, 32]))
    (folder / LOG).write_bytes(raw)
    assert verify(folder).fault is not None


@pytest.mark.parametrize("change", ["remove", "swap", "double", "first"])
def test_removed_moved_and_added_lines_are_noticed(tmp_path, change):
    path = filled(tmp_path) / LOG
    lines = path.read_bytes().splitlines(keepends=True)
    if change == "remove":
        del lines[2]
    elif change == "swap":
        lines[1], lines[2] = lines[2], lines[1]
    elif change == "double":
        lines.insert(2, lines[2])
    else:
        del lines[0]
    path.write_bytes(b"".join(lines))
    assert "does not follow" in (verify(tmp_path).fault or "")


def test_a_log_written_anew_by_somebody_without_the_key_is_noticed(tmp_path):
    """Every hash can be computed again by whoever can write the file; the signature cannot."""
    ours, theirs = filled(tmp_path / "ours"), filled(tmp_path / "theirs")
    (ours / LOG).write_bytes((theirs / LOG).read_bytes())
    assert "signature" in (verify(ours).fault or "")
    assert verify(theirs, theirs / "audit-key.pub").fault is None


@pytest.mark.parametrize("change", ["tail", "older copy", "older copy that went on"])
def test_a_log_that_lost_its_end_is_noticed_by_whoever_kept_its_head(tmp_path, capsys, change):
    """What is left is a whole log, with signatures; only a head that was kept elsewhere says that there was more."""
    folder, older = filled(tmp_path / "audit"), tmp_path / "older"
    older.write_bytes((folder / LOG).read_bytes())
    filled(folder)
    assert main(["audit", "verify", "--state", str(tmp_path), "--json"]) == 0
    head = json.loads(capsys.readouterr().out)["head"]
    filled(folder)
    assert main(["audit", "verify", "--state", str(tmp_path), "--head", head]) == 0, "later lines are no fault"
    if change == "tail":
        lines = (folder / LOG).read_bytes().splitlines(keepends=True)
        (folder / LOG).write_bytes(b"".join(lines[:8]))
    else:
        (folder / LOG).write_bytes(older.read_bytes())
    if change == "older copy that went on":
        filled(folder, lines=30)
    assert main(["audit", "verify", "--state", str(tmp_path)]) == 0
    assert main(["audit", "verify", "--state", str(tmp_path), "--head", head]) == 1
    assert "no line has the head that was kept" in capsys.readouterr().err


def test_a_kept_head_may_have_been_pruned(tmp_path):
    head = verify(filled(tmp_path)).head
    prune(tmp_path, 1, datetime.now(UTC) + timedelta(days=2))
    assert verify(tmp_path, kept_head=head).fault is None


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda lines: [lines[0].replace(b"hello", b"jello"), *lines[1:]], "was changed"),
        (lambda lines: lines[1:], "1 texts are missing"),
        (lambda lines: [], "2 texts are missing"),
        (lambda lines: [lines[0].replace(b"nonce", b"nunce"), *lines[1:]], "not what a server writes"),
        (lambda lines: lines[::-1], None),
    ],
    ids=["changed", "removed", "all removed", "no text", "moved"],
)
def test_stored_texts_are_held_against_the_log(tmp_path, change, fault):
    log = AuditLog(tmp_path, keep_texts=True)
    for name in ("req_1", "req_2"):
        log.append("begin", request=name)
        log.append("end", request=name, texts=log.text(name, ["hello"], ["there"]))
    log.close()
    assert verify(tmp_path).texts == 2
    path = tmp_path / TEXTS
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    found = verify(tmp_path).fault
    assert found is None if fault is None else fault in (found or "")


def test_half_a_line_after_a_kill_is_mended_and_noted(tmp_path):
    path = filled(tmp_path) / LOG
    with path.open("ab") as file:
        file.write(b'{"seq":7,"time":"2026')
    filled(tmp_path, 1)
    verdict = verify(tmp_path)
    assert verdict.fault is None
    assert [one["bytes_cut"] for one in records(tmp_path) if one["kind"] == "mended"] == [21]


WRITER = """
import sys
from pathlib import Path
from scumble.serve.audit import AuditLog
log = AuditLog(Path(sys.argv[1]))
for number in range(200):
    log.append("note", by=sys.argv[2], number=number)
log.close()
"""


def test_several_processes_write_one_chain(tmp_path):
    names = ("a", "b")
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name]) for name in names]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert verify(tmp_path).fault is None
    notes = [one for one in records(tmp_path) if one["kind"] == "note"]
    for name in names:
        assert [one["number"] for one in notes if one["by"] == name] == list(range(200))


def test_what_is_pruned_leaves_a_tombstone(tmp_path):
    filled(tmp_path, 10)
    open_log = AuditLog(tmp_path)  # a server that goes on writing meanwhile
    later = datetime.now(UTC) + timedelta(days=40)
    assert prune(tmp_path, 30, later) == 11
    verdict = verify(tmp_path)
    assert verdict.fault is None
    assert verdict.pruned == 11
    open_log.append("note", request="after")
    open_log.close()
    assert prune(tmp_path, 30, later) > 0, "a second tombstone follows the first"
    verdict = verify(tmp_path)
    assert verdict.fault is None
    lines = (tmp_path / LOG).read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["kind"] for line in lines[:2]] == ["tombstone", "tombstone"]
    assert not any("req_" in line.decode() for line in lines)
    for changed in ([lines[1], *lines[2:]], [lines[0], *lines[2:]]):
        (tmp_path / LOG).write_bytes(b"".join(changed))
        assert verify(tmp_path).fault is not None, "a tombstone cannot be left out"


def test_texts_are_kept_apart_redacted_and_deleted_on_their_own(tmp_path):
    log = AuditLog(tmp_path, keep_texts=True, redact=lambda text: text.replace("4711", "[number]"))
    digest = log.text("req_1", ["my card is 4711"], ["thank you"])
    log.append("end", request="req_1", texts=digest)
    log.close()
    (stored,) = [json.loads(line) for line in (tmp_path / TEXTS).read_text().splitlines()]
    assert stored["prompts"] == ["my card is [number]"]
    assert digest == text_digest(stored["nonce"], {"prompts": stored["prompts"], "answers": stored["answers"]})
    assert "card" not in (tmp_path / LOG).read_text()
    assert prune_texts(tmp_path, 1, datetime.now(UTC) + timedelta(days=2)) == 1
    assert (tmp_path / TEXTS).read_text() == ""
    assert verify(tmp_path).fault is None

    def broken(text: str) -> str:
        raise ValueError(text)

    failing = AuditLog(tmp_path, keep_texts=True, redact=broken)
    failing.text("req_2", ["secret"], [])
    assert "secret" not in (tmp_path / TEXTS).read_text()


def test_a_full_disk_leaves_whole_lines(tmp_path):
    """The limit on file sizes stands for the disk."""
    log = AuditLog(tmp_path)
    log.append("note", text="x" * 500)
    size = (tmp_path / LOG).stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
    try:
        with pytest.raises(AuditError, match="cannot be written"):
            log.append("note", text="y" * 500)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert (tmp_path / LOG).stat().st_size == size
    log.append("note", text="z")
    assert verify(tmp_path).fault is None


def test_what_the_server_records(llm, tmp_path, capsys):
    secret = Keys(open_store(tmp_path / "keys.db")).create("ci", ["generate"])
    with running(llm, state=tmp_path) as one:
        one.key = secret
        with one.client() as client:
            asked = client.post("/v1/completions", json={"prompt": "the canvas", "max_tokens": 4, **SHORT})
            client.post("/v1/completions", json={"prompt": "", "max_tokens": 4})
            client.get("/v1/models")
            client.get("/v1/models", headers={"authorization": "Bearer wrong"})
    log = list(records(tmp_path / "audit"))
    assert sorted(one["kind"] for one in log) == ["begin", "begin", "checkpoint", "denied", "end", "end"]
    begin, end = [one for one in log if one.get("request") == asked.headers["x-request-id"]]
    assert (begin["kind"], end["kind"]) == ("begin", "end")
    assert begin["key"] == "ci"
    assert begin["route"] == "/v1/completions"
    assert len(begin["model"]) == 64
    assert end["outcome"] == "ok"
    assert end["completion_tokens"] == 4
    assert end["ms"] > 0
    assert {one["status"] for one in log if one["kind"] == "end"} == {200, 400}
    assert "canvas" not in (tmp_path / "audit" / LOG).read_text()
    assert not (tmp_path / "audit" / TEXTS).exists()
    assert main(["audit", "verify", "--state", str(tmp_path)]) == 0
    assert "whole: 6 lines" in capsys.readouterr().out
    assert main(["audit", "export", "--format", "csv", "--state", str(tmp_path)]) == 0
    assert "/v1/completions" in capsys.readouterr().out
    assert main(["audit", "prune", "--days", "0", "--state", str(tmp_path)]) == 0
    assert main(["audit", "verify", "--state", str(tmp_path)]) == 0
    path = tmp_path / "audit" / LOG
    path.write_bytes(path.read_bytes().replace(b"pruned", b"purged"))
    assert main(["audit", "verify", "--state", str(tmp_path)]) == 1
    assert "NOT whole" in capsys.readouterr().err


def test_what_ends_while_the_server_ends_is_recorded_too(llm, tmp_path, monkeypatch):
    """A response in the background, for which nobody waits, and a disk that is slower than the server's end."""
    append = AuditLog.append

    def slow(log: AuditLog, kind: str, **fields: Any) -> str:
        time.sleep(0.5 if kind == "end" else 0)
        return append(log, kind, **fields)

    monkeypatch.setattr(AuditLog, "append", slow)
    with running(llm, state=tmp_path, drain_seconds=0) as one, one.client() as client:
        ask = {"prompt": "the canvas", "max_tokens": 4, **SHORT}
        assert client.post("/v1/completions", json=ask).status_code == 200
        long = {"input": "the canvas", "background": True, "max_output_tokens": 3000, "ignore_eos": True}
        assert client.post("/v1/responses", json=long).status_code == 200
    log = list(records(tmp_path / "audit"))
    # Of the response both have an end: the request that asked for it, and the answer itself.
    assert sorted(one["kind"] for one in log) == ["begin", "begin", "checkpoint", "end", "end", "end"]
    assert log[-1]["kind"] == "checkpoint", "the last line vouches for all of them"
    assert sorted(one["outcome"] for one in log if one["kind"] == "end") == ["ok", "ok", "shutdown"]


def test_texts_over_http_only_when_asked_for(llm, tmp_path):
    with running(llm, state=tmp_path, keep_texts=True) as one, one.client() as client:
        answer = client.post("/v1/completions", json={"prompt": "the canvas", "max_tokens": 4, **SHORT}).json()
    (stored,) = [json.loads(line) for line in (tmp_path / "audit" / TEXTS).read_text().splitlines()]
    assert stored["prompts"] == ["the canvas"]
    assert stored["answers"] == [answer["choices"][0]["text"]]


def test_nothing_is_answered_that_cannot_be_recorded(llm, tmp_path):
    with running(llm, state=tmp_path) as one, one.client() as client:
        ask = {"prompt": "the canvas", "max_tokens": 4, **SHORT}
        assert client.post("/v1/completions", json=ask).status_code == 200
        path = tmp_path / "audit" / LOG
        os.rename(path, path.with_suffix(".away"))
        refused = client.post("/v1/completions", json=ask)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "audit_failed"
        os.rename(path.with_suffix(".away"), path)
        assert client.post("/v1/completions", json=ask).status_code == 200
    assert verify(tmp_path / "audit").fault is None

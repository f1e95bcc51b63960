"""`pull` against a small hub on loopback: what it takes, what it leaves, how it goes on, what it says when it fails."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tiny import save_folder, tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The parts of the hub's HTTP interface that a download needs."""

    def __init__(self, files: dict[str, bytes]):
        self.files = files
        self.status: dict[str, int] = {}  # answers to questions about a repository
        self.headers: dict[str, str] = {}
        self.break_after: int | None = None  # bytes of a large file, once
        self.changed: bytes | None = None  # what that file holds afterwards
        self.lie = False  # about the digest of a large file
        self.asked: list[tuple[str, str | None]] = []  # file, Range
        self.tokens: set[str | None] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None: ...

            def do_GET(self) -> None:
                hub.answer(self, True)

            def do_HEAD(self) -> None:
                hub.answer(self, False)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler, with_body: bool) -> None:
        path = request.path.split("?")[0]
        self.tokens.add(request.headers.get("Authorization"))
        repository = "/".join(path.removeprefix("/api/models/").strip("/").split("/")[:2])
        if repository in self.status:
            self.send(request, self.status[repository], b"{}", self.headers, with_body)
        elif path.startswith("/api/models/owner/model"):
            revision = path.removeprefix("/api/models/owner/model").strip("/")
            if revision not in ("", "revision/main", "revision/" + COMMIT) and "tree" not in revision:
                headers = {"X-Error-Code": "RevisionNotFound"}
                self.send(request, 404, b"{}", headers, with_body)
            elif "tree" in revision:
                tree = [self.entry(name) for name in self.files]
                self.send(request, 200, json.dumps(tree).encode(), {"Content-Type": "application/json"}, with_body)
            else:
                info = {"id": "owner/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]}
                self.send(request, 200, json.dumps(info).encode(), {"Content-Type": "application/json"}, with_body)
        elif path.startswith("/owner/model/resolve/"):
            self.send_file(request, path.split("/", 5)[5], with_body)
        else:
            self.send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)

    def entry(self, name: str) -> dict[str, Any]:
        data = self.files[name]
        out: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        if name.endswith(".safetensors"):
            out["lfs"] = {"oid": self.digest(data), "size": len(data), "pointerSize": 130}
        return out

    def digest(self, data: bytes) -> str:
        return hashlib.sha256(data + (b"!" if self.lie else b"")).hexdigest()

    def send_file(self, request: BaseHTTPRequestHandler, name: str, with_body: bool) -> None:
        data = self.files[name]
        large = name.endswith(".safetensors")
        etag = self.digest(data) if large else hashlib.sha1(data).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        wanted, code = request.headers.get("Range"), 200
        if with_body:
            self.asked.append((name, wanted))
            if wanted:
                begin = int(wanted.removeprefix("bytes=").split("-")[0])
                headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
                data, code = data[begin:], 206
        cut = self.break_after if large and with_body else None
        if cut is not None:
            self.break_after = None
            self.files[name] = self.changed or self.files[name]
        self.send(request, code, data, headers, with_body, cut)

    def send(
        self, request: BaseHTTPRequestHandler, code: int, body: bytes, headers: dict[str, str], with_body: bool,
        cut: int | None = None,
    ) -> None:  # fmt: skip
        request.send_response(code)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            request.send_header(name, value)
        request.end_headers()
        if with_body:
            request.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            request.close_connection = True


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = save_folder(tmp_path / "made", tiny_model(), tokenizer=True)
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    made = Hub(files | {"pytorch_model.bin": b"pickle", "modeling.py": b"raise SystemExit", "README.md": b"#"})
    yield made
    made.server.shutdown()


def scumble(
    hub: Hub | None, home: Path, *arguments: str, largest: int | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: huggingface-hub reads its settings when it is imported.

    largest: bytes that a file may have; writing more fails, as on a full disk."""
    limit = None if largest is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "scumble.cli", *arguments], capture_output=True, text=True, timeout=120,
        env={**os.environ, **settings, **env}, preexec_fn=limit,
    )  # fmt: skip


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    return " ".join(result.stderr.split())


def test_it_takes_what_a_checkpoint_needs_and_nothing_that_could_run(hub, tmp_path):
    result = scumble(hub, tmp_path / "home", "pull", "owner/model", HF_TOKEN="hf_secret")
    assert result.returncode == 0, result.stderr
    folder = Path(result.stdout.strip())
    assert {file.name for file in folder.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    assert all((folder / name).read_bytes() == hub.files[name] for name in ("config.json", "model.safetensors"))
    assert "Bearer hf_secret" in hub.tokens
    again = scumble(hub, tmp_path / "home", "pull", "owner/model")
    assert again.stdout == result.stdout
    assert [name for name, _ in hub.asked].count("model.safetensors") == 1
    # An id serves where a path does, from the cache, without the network.
    info = scumble(None, tmp_path / "home", "info", "owner/model", "--json", HF_HUB_OFFLINE="1")
    assert info.returncode == 0, info.stderr
    assert json.loads(info.stdout)["architecture"]["layers"] == 3


def test_a_download_that_broke_off_goes_on(hub, tmp_path):
    chunk = 10 * 2**20  # huggingface-hub keeps whole pieces of this size
    hub.files = {"config.json": hub.files["config.json"], "big.safetensors": bytes(range(256)) * (2 * chunk // 256)}
    hub.break_after = chunk + 2**20
    scumble(hub, tmp_path / "home", "pull", "owner/model")
    result = scumble(hub, tmp_path / "home", "pull", "owner/model")
    assert result.returncode == 0, result.stderr
    assert [asked or "" for name, asked in hub.asked if name == "big.safetensors"][-1].startswith(f"bytes={chunk}-")
    assert (Path(result.stdout.strip()) / "big.safetensors").read_bytes() == hub.files["big.safetensors"]


def test_a_disk_that_is_full_in_the_middle_is_said_and_the_same_command_goes_on(hub, tmp_path):
    hub.files = {"config.json": hub.files["config.json"], "big.safetensors": bytes(range(256)) * (12 * 2**20 // 256)}
    result = scumble(hub, tmp_path / "home", "pull", "owner/model", largest=11 * 2**20)
    assert result.returncode == 1
    said = "owner/model: cannot be stored: File too large; the same command goes on where it stopped"
    assert said in last_line(result)
    assert not list((tmp_path / "home").rglob("snapshots/*/big.safetensors"))
    result = scumble(hub, tmp_path / "home", "pull", "owner/model")
    assert result.returncode == 0, result.stderr
    assert (Path(result.stdout.strip()) / "big.safetensors").read_bytes() == hub.files["big.safetensors"]


def test_a_file_that_changes_while_a_download_goes_on_is_not_taken_for_whole(hub, tmp_path):
    chunk = 10 * 2**20
    config, old = hub.files["config.json"], bytes(range(256)) * (2 * chunk // 256)
    hub.files, hub.break_after = {"config.json": config, "big.safetensors": old}, chunk + 2**20
    hub.changed = old[::-1]
    result = scumble(hub, tmp_path / "home", "pull", "owner/model")
    assert result.returncode == 1
    assert "big.safetensors is damaged" in last_line(result)
    result = scumble(hub, tmp_path / "home", "pull", "owner/model")
    assert result.returncode == 0, result.stderr
    assert (Path(result.stdout.strip()) / "big.safetensors").read_bytes() == old[::-1]


def test_a_file_with_another_digest_is_removed(hub, tmp_path):
    hub.lie = True
    result = scumble(hub, tmp_path / "home", "pull", "owner/model")
    assert result.returncode == 1
    assert "model.safetensors is damaged: its SHA-256 is not the one that the hub names" in last_line(result)
    assert not list((tmp_path / "home").rglob("snapshots/*/model.safetensors"))


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (401, {}, "owner/closed: needs a valid token: set HF_TOKEN"),
        (404, {"X-Error-Code": "RepoNotFound"}, "owner/closed: is not there, or is private (404)"),
        (403, {"X-Error-Code": "GatedRepo"}, "owner/closed: is gated: accept its terms"),
        (500, {}, "owner/closed: "),
    ],
)
def test_refusals_of_the_hub_are_one_clear_line(hub, tmp_path, status, headers, said):
    hub.status["owner/closed"], hub.headers = status, headers
    result = scumble(hub, tmp_path / "home", "pull", "owner/closed")
    assert result.returncode == 1
    assert said in last_line(result)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "env", "code", "said"),
    [
        (["owner/model", "--revision", "v9"], {}, 1, "owner/model at v9: has no such revision"),
        (["no id at all"], {}, 2, "a repository's id must look like owner/name, found 'no id at all'"),
        (["owner/model"], {"HF_HUB_OFFLINE": "1"}, 1, "is not in the cache, and HF_HUB_OFFLINE is set"),
        (["owner/model"], {"HF_ENDPOINT": "http://127.0.0.1:9"}, 1, "cannot be reached: check the network"),
    ],
)
def test_what_cannot_be_had_is_said(hub, tmp_path, arguments, env, code, said):
    result = scumble(hub, tmp_path / "home", "pull", *arguments, **env)
    assert said in last_line(result), result.stderr
    assert result.returncode == code
    assert "Traceback" not in result.stderr

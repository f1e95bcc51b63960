"""Who may do what: keys, scopes, limits, and that no route was forgotten."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from serving import SHORT, Running, running

from scumble.errors import InvalidRequest
from scumble.serve import keys as keys_module
from scumble.serve.app import make_inner_app
from scumble.serve.errors import ApiError
from scumble.serve.gate import PUBLIC, ScopedRoute, scope
from scumble.serve.keys import SCOPES, Key, Keys, read_key_file
from scumble.serve.limits import Limiter
from scumble.serve.store import StoreError, open_store

WITHOUT_KEY = {"/health", "/ready", "/", "/web/{name}"}


@pytest.fixture(scope="module")
def closed(llm, tmp_path_factory) -> Iterator[Running]:
    """A server with an admin's key."""
    state = tmp_path_factory.mktemp("state")
    secret = Keys(open_store(state / "keys.db")).create("boss", SCOPES)
    with running(llm, state=state) as one:
        one.key = secret
        yield one


def routes(one: Running) -> list[ScopedRoute]:
    return [route for route in make_inner_app(one.service).routes if isinstance(route, ScopedRoute)]


def call(client: httpx.Client, route: ScopedRoute, key: str | None) -> httpx.Response:
    (method,) = route.methods - {"HEAD"}
    path = route.path.replace("{name:path}", "x").replace("{name}", "x")
    for name in ("response_id", "batch_id", "file_id", "asset"):
        path = path.replace(f"{{{name}}}", "x")
    assert "{" not in path, f"say in this test what stands for the parameter of {path}"
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return client.request(method, path, headers=headers, json={} if method == "POST" else None)


def test_every_route_has_a_scope_and_is_closed_without_it(closed):
    """Over the app's real routes: one that is added without a scope fails here, or does not even start."""
    store = closed.service.access.keys
    secrets = {name: store.create(f"only-{name}", [name]) for name in SCOPES}
    found = routes(closed)
    assert len(found) >= 14
    with httpx.Client(base_url=closed.url) as client:
        for route in found:
            if route.scope_needed == PUBLIC:
                assert route.path in WITHOUT_KEY
                assert call(client, route, None).status_code not in (401, 403)
                continue
            assert route.scope_needed in SCOPES
            assert call(client, route, None).status_code == 401, route.path
            assert call(client, route, "sk-wrong").status_code == 401, route.path
            for name, secret in secrets.items():
                refused = call(client, route, secret).status_code == 403
                assert refused == (name != route.scope_needed), (route.path, name)
    assert {route.scope_needed for route in found} == {PUBLIC, *SCOPES}
    assert len(make_inner_app(closed.service).routes) == len(found), "a route that is no ScopedRoute has no scope"


def test_a_route_without_a_scope_cannot_be_made():
    async def forgotten() -> None: ...

    with pytest.raises(TypeError, match="has no scope"):
        ScopedRoute("/forgotten", forgotten)
    ScopedRoute("/known", scope("generate")(forgotten))


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"authorization": "Bearer"}, {"authorization": "Basic {key}"},
        {"authorization": "Bearer {key} x"}, {"authorization": "{key}"}, {"authorization": "Bearer {key}\u00e9"},
        {"x-api-key": ""}, {"cookie": "key={key}"}, {"authorization": "Bearer " + "k" * 5000},
    ],
)  # fmt: skip
def test_what_is_no_key(closed, headers):
    sent = {name: value.replace("{key}", closed.key).encode("latin-1") for name, value in headers.items()}
    with httpx.Client(base_url=closed.url) as client:
        answer = client.get("/v1/models", headers=sent)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert closed.key not in answer.text


def test_both_ways_to_send_a_key(closed):
    with httpx.Client(base_url=closed.url) as client:
        assert client.get("/v1/models", headers={"x-api-key": closed.key}).status_code == 200
        assert client.get("/v1/models", headers={"authorization": f"bearer {closed.key}"}).status_code == 200
        assert client.get(f"/v1/models?api_key={closed.key}").status_code == 401, "keys in URLs end up in logs"


def test_comparison_takes_every_key_in_constant_time(tmp_path, monkeypatch):
    """Every key is compared, found or not, and by compare_digest: the time tells nothing of how much was right."""
    keys = Keys(open_store(tmp_path / "keys.db"))
    secrets = [keys.create(f"k{number}", ["generate"]) for number in range(4)]
    compared = []
    real = keys_module.hmac.compare_digest
    monkeypatch.setattr(keys_module.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    for asked in (secrets[0], secrets[3], "wrong", secrets[0][:-1]):
        compared.clear()
        assert (keys.find(asked) is not None) == (asked in secrets)
        assert len(compared) == 4
        assert all(len(a) == len(b) == 64 for a, b in compared), "hashes, of one length"


def test_secrets_are_nowhere_at_rest(tmp_path):
    keys = Keys(open_store(tmp_path / "keys.db"))
    secret = keys.create("ci", ["generate"])
    assert len(secret) - len("sk-scumble-") == 43, "256 bits in base64"
    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"ci" in stored
    assert secret.encode() not in stored
    assert secret[len("sk-scumble-") :].encode() not in stored
    assert (tmp_path / "keys.db").stat().st_mode & 0o077 == 0


def test_keys_expire_and_are_revoked(tmp_path, monkeypatch):
    keys = Keys(open_store(tmp_path / "keys.db"))
    short, long = keys.create("short", ["generate"], expires_days=1), keys.create("long", ["generate"])
    assert keys.find(short) is not None
    later = keys_module.time.time() + 86401
    monkeypatch.setattr(keys_module.time, "time", lambda: later)
    assert keys.find(short) is None
    assert keys.find(long) is not None
    Keys(open_store(tmp_path / "keys.db")).revoke("long")  # another process
    keys._read_at = float("-inf")  # two seconds later
    assert keys.find(long) is None
    with pytest.raises(InvalidRequest, match="name long already"):
        keys.create("long", ["generate"])


def test_admin_routes(closed):
    with closed.client() as client:
        made = client.post("/admin/keys", json={"name": "guest", "scopes": ["generate"], "requests_per_minute": 2})
        assert made.status_code == 201
        secret = made.json()["key"]
        listed = client.get("/admin/keys").json()["data"]
        assert secret not in str(listed)
        assert {"boss", "guest"} <= {key["name"] for key in listed}
        status = client.get("/admin/status").json()
        assert status["slots"] == 8
        assert not status["open"]
        with httpx.Client(base_url=closed.url, headers={"authorization": f"Bearer {secret}"}) as guest:
            assert guest.get("/v1/models").status_code == 200
            assert guest.get("/v1/models").status_code == 200
            over = guest.get("/v1/models")
            assert over.status_code == 429
            assert 0 < int(over.headers["retry-after"]) <= 60
            assert client.delete("/admin/keys/guest").json()["state"] == "revoked"
            assert guest.get("/v1/models").status_code == 401
        assert client.delete("/admin/keys/nobody").status_code == 404
        assert client.post("/admin/keys", json={"name": "a b", "scopes": ["generate"]}).status_code == 400
        assert client.post("/admin/keys", json={"name": "x", "scopes": ["root"]}).status_code == 400


def test_nobody_can_lock_the_admins_out(llm, tmp_path):
    with running(llm, state=tmp_path) as one:
        with one.client() as client:  # no keys yet: this machine may do everything
            assert client.get("/admin/status").json()["open"]
            assert client.post("/admin/keys", json={"name": "user", "scopes": ["generate"]}).status_code == 409
            one.key = client.post("/admin/keys", json={"name": "boss", "scopes": ["admin"]}).json()["key"]
            assert client.get("/admin/keys").status_code == 401, "with the first key the door closes"
        with one.client() as client:
            refused = client.delete("/admin/keys/boss")
            assert refused.status_code == 409
            assert refused.json()["error"]["code"] == "last_admin"
            client.post("/admin/keys", json={"name": "brief", "scopes": ["admin"], "expires_days": 1})
            assert client.delete("/admin/keys/boss").status_code == 409, "the other one will expire"
            client.post("/admin/keys", json={"name": "second", "scopes": ["admin"]})
            assert client.delete("/admin/keys/boss").status_code == 200
    keys = Keys(open_store(tmp_path / "keys.db"))
    keys.revoke("second")  # on the machine itself it is allowed …
    keys.revoke("brief")
    with running(llm, state=tmp_path) as one, one.client() as client:
        assert client.get("/v1/models").status_code == 401, "… and does not open the door"
    assert keys.create("third", ["admin"]).startswith("sk-scumble-"), "and a new one can be made"


def test_a_server_that_others_reach_needs_a_key(llm, tmp_path):
    with pytest.raises(InvalidRequest, match="scumble keys create"), running(llm, host="0.0.0.0", state=tmp_path):
        pass


def test_a_file_of_keys(llm, tmp_path):
    file = tmp_path / "keys.txt"
    file.write_text(f"# the first one is for the gateway\n{'g' * 40}\n\nboss admin,generate {'b' * 40}\n")
    assert [(key.name, key.scopes) for key in read_key_file(file)] == [
        ("key-1", ("generate", "metrics")), ("boss", ("admin", "generate")),
    ]  # fmt: skip
    with running(llm, key_file=file) as one:
        one.key = "g" * 40
        with one.client() as client:
            assert client.get("/metrics").status_code == 200
            assert client.get("/admin/keys").status_code == 403
    for wrong in ("short", f"a b c {'k' * 40}", f"name root {'k' * 40}", "", f"x generate {'k' * 40}\n" * 2):
        file.write_text(wrong)
        with pytest.raises(InvalidRequest):
            read_key_file(file)
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_key_file(tmp_path / "missing")


@pytest.fixture(scope="module")
def postgres(tmp_path_factory) -> Iterator[str]:
    """A real PostgreSQL server of this module's own, on a local port."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if Path("/usr/lib/postgresql").is_dir() else []
    if not folders and shutil.which("initdb") is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    binaries = folders[-1] if folders else Path(shutil.which("initdb") or "").parent
    folder = tmp_path_factory.mktemp("pg")
    prefix: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, "nobody")
        folder.chmod(0o700)
        for parent in folder.parents:
            if parent.stat().st_mode & 0o001 == 0:
                parent.chmod(parent.stat().st_mode | 0o011)
        prefix = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = folder / "data"
    run = {"check": True, "capture_output": True, "cwd": folder}
    subprocess.run([*prefix, binaries / "initdb", "-D", data, "-U", "scumble", "-A", "trust", "--no-sync"], **run)
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    log = folder / "log"
    control = [*prefix, binaries / "pg_ctl", "-D", data, "-w", "-l", log]
    subprocess.run([*control, "-o", options, "start"], **run | {"capture_output": False, "stdout": subprocess.DEVNULL})
    try:
        yield f"postgresql://scumble@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **run)


@pytest.mark.parametrize("where", ["sqlite", "postgres"])
def test_servers_share_keys_and_limits(where, tmp_path, request):
    url = tmp_path / "keys.db" if where == "sqlite" else request.getfixturevalue("postgres")
    first, second = open_store(url), open_store(url)
    secret = Keys(first).create("shared", ["generate"], None, 3, 100)
    key = Keys(second).find(secret)
    assert key is not None
    limits = [Limiter(first), Limiter(second)]
    for number in range(3):
        limits[number % 2].request(key)
    for one in limits:
        with pytest.raises(ApiError, match="3 requests a minute") as error:
            one.request(key)
        assert error.value.status == 429
    limits[0].tokens(key, 60)
    with pytest.raises(ApiError, match="100 tokens a minute"):
        limits[1].tokens(key, 60)
    limits[1].tokens(key, 30)  # what was refused did not count
    limits[0].wrote(key, 1000)
    with pytest.raises(ApiError):
        limits[1].tokens(key, 1)
    Keys(first).revoke("shared")
    assert Keys(second).find(secret) is None


def test_a_window_ends(tmp_path, monkeypatch):
    from scumble.serve import limits as module

    limiter, key = Limiter(open_store(None)), Key("k", "", ("generate",), 0.0, requests_per_minute=1)
    limiter.request(key)
    with pytest.raises(ApiError):
        limiter.request(key)
    later = module.time.time() + 61
    monkeypatch.setattr(module.time, "time", lambda: later)
    limiter.request(key)


def test_token_limits_hold_over_http(closed):
    store = closed.service.access.keys
    secret = store.create("few", ["generate"], None, None, 40)
    with httpx.Client(base_url=closed.url, headers={"authorization": f"Bearer {secret}"}, timeout=30) as client:
        ask = {"prompt": "the canvas", "max_tokens": 16, **SHORT}
        codes = [client.post("/v1/completions", json=ask).status_code for _ in range(4)]
        assert codes[0] == 200
        assert codes[-1] == 429
        large = client.post("/v1/completions", json={**ask, "prompt": "paint " * 60})
        assert large.status_code == 429


def test_a_store_that_cannot_be_opened(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        open_store(tmp_path / "file" / "keys.db")
    with pytest.raises(InvalidRequest):
        open_store("mysql://somewhere/x")
    with pytest.raises(StoreError) as error:
        open_store("postgresql://user:secret@127.0.0.1:1/x")
    assert "secret" not in str(error.value)
    assert getpass.getuser() not in str(error.value)

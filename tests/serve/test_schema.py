"""The served OpenAPI schema, and what schemathesis finds when it sends what the schema allows and what it forbids."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest
from serving import running, tiny_llm

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "negative_data_rejection", "unsupported_method",
)  # fmt: skip


def test_the_schema_names_every_route_and_how_it_refuses(http):
    paths = http.get("/openapi.json").json()["paths"]
    for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/files", "/v1/batches", "/tokenize"):
        assert "4XX" in paths[path]["post"]["responses"]
        assert "422" not in paths[path]["post"]["responses"], "no answer has that status"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("schemathesis") is None, reason="schemathesis is not installed")
def test_schemathesis(tmp_path_factory):
    llm = tiny_llm(tmp_path_factory.mktemp("short"), max_position_embeddings=96)  # answers end soon
    with running(llm, state=tmp_path_factory.mktemp("state"), max_waiting=64) as one:
        done = subprocess.run(
            [
                sys.executable, "-m", "schemathesis.cli", "run", f"{one.url}/openapi.json",
                "--phases", "examples,coverage,fuzzing", "--max-examples", "15", "--seed", "1",
                "--checks", ",".join(CHECKS), "--request-timeout", "60", "--exclude-path-regex", "/admin",
                "--header", "Accept: application/json",
            ],
            capture_output=True, text=True, timeout=800, cwd=tmp_path_factory.mktemp("cases"),
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]

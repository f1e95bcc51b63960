"""Fixtures of the server's tests; what they are made of is in serving.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

sys.path.insert(0, str(Path(__file__).parent))

import httpx
from serving import Running, running, tiny_llm

from scumble import LLM


@pytest.fixture(scope="session")
def llm(tmp_path_factory) -> LLM:
    return tiny_llm(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def served(llm) -> Iterator[Running]:
    """An open server on loopback, shared by all tests that leave it as it was."""
    with running(llm) as one:
        yield one


@pytest.fixture
def http(served) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client

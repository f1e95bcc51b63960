"""A server on loopback around a tiny random model: real sockets, real clients, quick answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from scumble import LLM
from scumble.serve.run import Server, make_server
from scumble.serve.settings import ServeSettings
from tiny import save_folder, tiny_model, tiny_tokenizer

MARKERS = [
    "<|turn>", "<turn|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|repair|>", "<|channel>",
    "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>',
]  # fmt: skip


@dataclass
class Running:
    """A server that answers. `short` are settings that make an answer quick and as long as asked."""

    server: Server
    url: str
    key: str = ""

    @property
    def service(self):
        return self.server.service

    def client(self, **options: Any) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, **options)


def tiny_llm(folder: Path, **changes: Any) -> LLM:
    """A random model whose tokenizer knows every marker, so that it can chat, think, fill in and edit."""
    save_folder(folder, tiny_model(vocab_size=320, **changes), tokenizer=True)
    backend: Backend = tiny_tokenizer()
    backend.add_special_tokens([AddedToken(marker, special=True) for marker in MARKERS])
    backend.save(str(folder / "tokenizer.json"))
    return LLM.load(folder)


@contextmanager
def running(llm: LLM, **settings: Any) -> Iterator[Running]:
    server = make_server(llm, ServeSettings(**{"port": 0, "names": ("tiny",), "drain_seconds": 5, **settings}))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    until(lambda: server.service.ready)
    try:
        yield Running(server, f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not end"


def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


SHORT = {"ignore_eos": True, "max_denoising_steps": 3}  # an answer that is quick, and as long as asked

"""Two servers behind a plain balancer, which knows nothing of HTTP. One is killed: its requests in flight fail clearly,
and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys

import httpx
import pytest
from serving import SHORT, until
from test_batches import _free_port, _is_ready


async def balanced(ports: list[int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection to the first server that takes it, bytes both ways; each connection begins with the next one."""
    ports.append(ports.pop(0))
    for port in ports:
        with contextlib.suppress(OSError):
            there = await asyncio.open_connection("127.0.0.1", port)
            break
    else:
        return writer.close()

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await source.read(65536):
                target.write(piece)
                await target.drain()
        target.close()

    await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))


async def ask(url: str, number: int, tokens: int) -> tuple[str, str]:
    """A streamed answer over a connection of its own -> the server that made it, and what became of it."""
    body = {"prompt": "the canvas", "seed": number, "max_tokens": tokens, "stream": True, **SHORT}
    made_by = "nobody"
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        try:
            async with client.stream("POST", "/v1/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        made_by = line.split('"model":"')[1].split('"')[0]
                    if line == "data: [DONE]":
                        return made_by, "whole"
        except httpx.TransportError as error:
            return made_by, type(error).__name__
    return made_by, "cut short"


@pytest.mark.slow
def test_of_two_servers_one_is_killed(llm, tmp_path):
    ports, processes = [_free_port(), _free_port()], []
    try:
        for number, port in enumerate(ports):
            command = [
                sys.executable, "-m", "scumble", "serve", str(llm.folder), "--port", str(port),
                "--served-model-name", f"tiny-{number}", "--state", str(tmp_path / str(number)),
            ]  # fmt: skip
            processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        for port in ports:
            until(lambda port=port: _is_ready(port), 120)
        asyncio.run(_kill_one(ports, processes))
    finally:
        for process in processes:
            process.terminate()
            process.wait(60)


async def _kill_one(ports: list[int], processes: list[subprocess.Popen[bytes]]) -> None:
    server = await asyncio.start_server(
        lambda reader, writer: balanced(turns, reader, writer), "127.0.0.1", 0
    )  # fmt: skip
    turns = list(ports)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        flying = [asyncio.create_task(ask(url, number, 400)) for number in range(6)]
        await asyncio.sleep(1.0)
        processes[0].send_signal(signal.SIGKILL)
        behind = await asyncio.gather(*(ask(url, number, 4) for number in range(6)))
        ended = await asyncio.gather(*flying)
    assert behind == [("tiny-1", "whole")] * 6, "new requests find the other server"
    assert sorted(end == "whole" for _, end in ended) == [False] * 3 + [True] * 3
    for made_by, end in ended:
        if end == "whole":
            assert made_by == "tiny-1"
        else:
            assert made_by in ("tiny-0", "nobody")
            assert end in ("RemoteProtocolError", "ReadError"), "the client's own error, at once, and no half answer"

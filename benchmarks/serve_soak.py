"""A server's life in minutes: random requests, cancels, slow readers, bad requests and bursts, watched from outside.

A server of its own is started, loaded for --minutes, left to come to rest, and asked what it holds. It fails (exit code
1) where an answer is lost, hangs, or differs from the same request alone; where places or queue are not empty at the
end; or where memory has grown by more than 5 % since the warm-up (the first quarter of the time).

    python benchmarks/serve_soak.py --minutes 10
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import clone  # noqa: F401
import httpx

PROMPTS = ["def mean(values):", "def read_lines(path):", "class Stack:", "def is_prime(n):", "import json\n"]
LONGEST = 300.0  # seconds after which an answer counts as hung; the server itself turns away who waited for 120
BAD: list[tuple[bytes, int]] = [
    (b"{", 400), (b"[]", 400), (b'{"prompt": 5}', 400), (b'{"prompt": "a", "max_tokens": -1}', 400),
    (b'{"prompt": "a", "temperature": NaN}', 400), (b'{"prompt": "a", "nothing": 1}', 400), (b"\xff", 400),
    (b'{"prompt": "a", "model": "other"}', 404), (b'{"prompt": "' + b"a b " * 40_000 + b'"}', 400),
]  # fmt: skip


def body_of(number: int) -> dict[str, Any]:
    """Request `number`, the same whenever it is asked."""
    pick = random.Random(number)
    return {
        "prompt": pick.choice(PROMPTS), "seed": number, "max_tokens": pick.choice([4, 16, 32, 48]), "ignore_eos": True,
        "best_of": 1, "revisions": 0, "decoder": pick.choice(["diffusion", "diffusion", "autoregressive"]),
    }  # fmt: skip


class Soak:
    def __init__(self, client: httpx.AsyncClient, process: int, seconds: float) -> None:
        self.client = client
        self.process = process
        self.ends = time.monotonic() + seconds
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.alone: dict[int, str] = {}
        self.memory: list[tuple[float, float]] = []

    async def answer(self, number: int, stream: bool, pause: float = 0.0) -> str | None:
        """One answer's text, read with pauses; None: the queue was full, or moved too slowly."""
        body = {**body_of(number), "stream": stream}
        async with asyncio.timeout(LONGEST), self.client.stream("POST", "/v1/completions", json=body) as reply:
            if reply.status_code == 429 or (
                reply.status_code == 503 and "queue_timeout" in (await reply.aread()).decode()
            ):
                return None
            if reply.status_code != 200:
                raise RuntimeError(f"status {reply.status_code}")
            if not stream:
                return json.loads(await reply.aread())["choices"][0]["text"]
            text, done = "", False
            async for line in reply.aiter_lines():
                await asyncio.sleep(pause)
                if line == "data: [DONE]":
                    done = True
                elif line.startswith("data: "):
                    event = json.loads(line[6:])
                    if event.get("error", {}).get("code") == "queue_timeout":
                        return None
                    if "error" in event:
                        raise RuntimeError(event["error"]["message"])
                    text += event["choices"][0]["text"] if event["choices"] else ""
            if not done:
                raise RuntimeError("the stream ended without its end")
            return text

    async def checked(self, pick: random.Random, pause: float = 0.0) -> None:
        number = pick.randrange(len(self.alone))
        text = await self.answer(number, pick.random() < 0.7, pause)
        self.counts["turned away" if text is None else "answered"] += 1
        if text is not None and text != self.alone[number]:
            self.faults.append(f"request {number} got another text than alone")

    async def cancelled(self, pick: random.Random) -> None:
        """Leave at any moment, by closing the connection."""
        task = asyncio.create_task(self.answer(pick.randrange(len(self.alone)), pick.random() < 0.7))
        await asyncio.sleep(pick.random() * 0.5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self.counts["left"] += 1

    async def bad(self, pick: random.Random) -> None:
        content, status = pick.choice(BAD)
        async with asyncio.timeout(LONGEST):
            reply = await self.client.post(
                "/v1/completions", content=content, headers={"content-type": "application/json"}
            )
        self.counts["refused"] += 1
        if reply.status_code != status:
            self.faults.append(f"a bad request got {reply.status_code} instead of {status}")

    async def burst(self, pick: random.Random) -> None:
        await asyncio.gather(*(self.checked(pick) for _ in range(12)))
        self.counts["bursts"] += 1

    async def client_life(self, seed: int) -> None:
        pick = random.Random(seed)
        while time.monotonic() < self.ends:
            kind = pick.random()
            try:
                if kind < 0.6:
                    await self.checked(pick)
                elif kind < 0.7:
                    await self.checked(pick, pause=0.05)
                elif kind < 0.85:
                    await self.cancelled(pick)
                elif kind < 0.98:
                    await self.bad(pick)
                else:
                    await self.burst(pick)
            except TimeoutError:
                self.faults.append(f"nothing came for {LONGEST:.0f} s")
            except (RuntimeError, httpx.HTTPError, KeyError, ValueError) as error:
                self.faults.append(f"{type(error).__name__}: {str(error)[:200]}")
            await asyncio.sleep(pick.random() * 0.3)

    async def watch(self) -> None:
        begun = time.monotonic()
        while time.monotonic() < self.ends:
            self.memory.append((time.monotonic() - begun, memory_of(self.process)))
            await asyncio.sleep(2)

    async def run(self, clients: int, requests: int) -> None:
        for number in range(requests):
            text = await self.answer(number, stream=True)
            assert text is not None
            self.alone[number] = text
        await asyncio.gather(self.watch(), *(self.client_life(seed) for seed in range(clients)))
        end = time.monotonic() + 30
        while (left := await self.left_over()) and time.monotonic() < end:
            await asyncio.sleep(0.2)
        if left:
            self.faults.append(f"30 s after the last request there are still {left}")

    async def left_over(self) -> dict[str, float]:
        """What is in the making or waits, by the server's own account."""
        text = (await self.client.get("/metrics")).text
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "scumble:slots_in_use")
        found = {name: float(re.search(rf"^{name}\{{[^}}]*\}} (\S+)", text, re.M)[1]) for name in names}  # type: ignore[index]
        return {name: value for name, value in found.items() if value}

    def growth(self) -> tuple[float, float, float]:
        """Memory at a quarter of the time and at its end (MiB, medians of a tenth of the time), and their ratio."""
        last = self.memory[-1][0]
        early = [size for at, size in self.memory if 0.2 * last <= at <= 0.3 * last]
        late = [size for at, size in self.memory if at >= 0.9 * last]
        before, after = statistics.median(early), statistics.median(late)
        return before, after, after / before


def memory_of(process: int) -> float:
    """Resident memory of a process that is its own, MiB: model files that are mapped do not count."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


async def main() -> int:
    parser = argparse.ArgumentParser(description="Load a server for minutes with all that clients do.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--requests", type=int, default=24, help="Different requests, each made alone first.")
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as state:
        command = [sys.executable, "-m", "scumble", "serve", "--port", str(port), "--state", state,
                   "--max-running", "8", "--max-waiting", "8"]  # fmt: skip
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LONGEST) as client:
                while True:
                    try:
                        if (await client.get("/ready")).status_code == 200:
                            break
                    except httpx.TransportError:
                        if process.poll() is not None:
                            print("the server ended")
                            return 1
                    await asyncio.sleep(0.2)
                soak = Soak(client, process.pid, 60 * options.minutes)
                await soak.run(options.clients, options.requests)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        verdict = subprocess.run(
            [sys.executable, "-m", "scumble", "audit", "verify", "--state", state], capture_output=True, text=True
        )
    before, after, ratio = soak.growth()
    print(", ".join(f"{count} {what}" for what, count in sorted(soak.counts.items())))
    print(f"memory: {before:.0f} MiB after the warm-up, {after:.0f} MiB at the end, {100 * (ratio - 1):+.1f} %")
    print(verdict.stdout.strip() or verdict.stderr.strip())
    if ratio > 1.05:
        soak.faults.append("memory has grown by more than 5 %")
    if verdict.returncode:
        soak.faults.append("the audit log is not whole")
    for fault, count in Counter(soak.faults).most_common(20):
        print(f"FAULT ({count}): {fault}")
    print("no fault" if not soak.faults else f"{len(soak.faults)} faults")
    return int(bool(soak.faults))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

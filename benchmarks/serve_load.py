"""Aggregate tokens a second and time to the first text of a running server, by number of streams at a time.

scumble serve --max-running 64 --max-waiting 64 &
python benchmarks/serve_load.py http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time

import clone  # noqa: F401
import httpx

PROMPTS = ["def mean(values):", "def read_lines(path):", "class Stack:", "def is_prime(n):"]
TOKENS = 64


async def stream(client: httpx.AsyncClient, number: int) -> tuple[int, float, str]:
    """One request -> tokens, seconds to the first text, the text."""
    body = {
        "prompt": PROMPTS[number % len(PROMPTS)], "seed": number, "max_tokens": TOKENS, "ignore_eos": True,
        "best_of": 1, "revisions": 0, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    start, first, text, tokens = time.perf_counter(), None, "", 0
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
            for choice in event["choices"]:
                if choice["text"] and first is None:
                    first = time.perf_counter() - start
                text += choice["text"]
    return tokens, first or 0.0, text


async def main(url: str) -> None:
    limits = httpx.Limits(max_connections=128)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        await stream(client, 0)
        alone = {number: (await stream(client, number))[2] for number in range(8)}
        rates: dict[int, list[float]] = {1: [], 8: [], 64: []}
        firsts: dict[int, list[float]] = {1: [], 8: [], 64: []}
        for count in (1, 8, 1, 8, 1, 8, 64):
            start = time.perf_counter()
            done = await asyncio.gather(*(stream(client, number) for number in range(count)))
            rates[count].append(sum(one[0] for one in done) / (time.perf_counter() - start))
            firsts[count] += [one[1] for one in done]
            same = all(one[2] == alone[number] for number, one in enumerate(done) if number in alone)
            print(f"{count} at once: {rates[count][-1]:.1f} tokens/s, texts as alone: {same}", flush=True)
        base = statistics.median(rates[1])
        for count in rates:
            first, rate = sorted(firsts[count]), statistics.median(rates[count])
            late = first[-1 - len(first) // 20]
            print(f"{count}: {rate:.1f} tokens/s, {rate / base:.2f} times one stream's; ", end="")
            print(f"first text: median {statistics.median(first):.2f} s, p95 {late:.2f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Tokens a second of a running server, by number of streams at a time.")
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000")
    asyncio.run(main(parser.parse_args().url))

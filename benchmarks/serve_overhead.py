"""What a request costs over HTTP beyond LLM.generate: the same requests in turns, over loopback and by a call.

Server and caller share one process, one model and its engine, so that the difference is what the server adds: HTTP,
JSON, checks, audit log, the way between threads. The client's own work is in it too.

    python benchmarks/serve_overhead.py --requests 200
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import clone  # noqa: F401
import torch

from scumble import LLM, GenerationConfig
from scumble.serve.run import make_server
from scumble.serve.settings import ServeSettings

PROMPT = "def mean(values):"
WAYS = ("whole", "streamed")
WARM_UP = 5
# One pass a canvas: what differs between two runs of the model would drown what the server adds.
QUICK: dict[str, Any] = {"max_denoising_steps": 1, "ignore_eos": True, "best_of": 1, "revisions": 0}


@contextmanager
def served(llm: LLM, **settings: Any) -> Iterator[HTTPConnection]:
    """A server on a free port -> a connection to it."""
    server = make_server(llm, ServeSettings(port=0, **settings))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.service.ready:
        time.sleep(0.05)
    connection = HTTPConnection("127.0.0.1", server.servers[0].sockets[0].getsockname()[1])
    try:
        yield connection
    finally:
        connection.close()
        server.should_exit = True
        thread.join()


def over_http(connection: HTTPConnection, seed: int, tokens: int, way: str) -> float:
    """Seconds that one request takes, to the last byte of its answer."""
    body = json.dumps({"prompt": PROMPT, "seed": seed, "max_tokens": tokens, "stream": way == "streamed", **QUICK})
    start = time.perf_counter()
    connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    took = time.perf_counter() - start
    assert answer.status == 200
    return took


def by_a_call(llm: LLM, seed: int, tokens: int) -> float:
    config = GenerationConfig(max_new_tokens=tokens, seed=seed, **QUICK)
    start = time.perf_counter()
    llm.generate(PROMPT, config)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Milliseconds of a request over HTTP beyond LLM.generate.")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=16)
    options = parser.parse_args()
    llm = LLM.load()
    print(f"{options.requests} requests of {options.tokens} tokens, in turns; {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as state:
        for name, settings in (("with audit log", {"state": Path(state)}), ("without audit log", {})):
            times: dict[str, list[float]] = {"call": [], **{way: [] for way in WAYS}}
            with served(llm, **settings) as connection:
                for number in range(-WARM_UP, options.requests):
                    seed = max(0, number)
                    took = {"call": by_a_call(llm, seed, options.tokens)}
                    for way in WAYS:
                        took[way] = over_http(connection, seed, options.tokens, way)
                    if number >= 0:
                        for way, seconds in took.items():
                            times[way].append(1000 * seconds)
            print(f"{name}: LLM.generate {statistics.median(times['call']):.2f} ms", flush=True)
            for way in WAYS:
                more = [one - other for one, other in zip(times[way], times["call"], strict=True)]
                low, middle, high = statistics.quantiles(more, n=4)
                print(f"  {way}: {statistics.median(times[way]):.2f} ms, beyond the call of the same request: ", end="")
                print(f"median {middle:.2f} ms (quartiles {low:.2f} … {high:.2f})", flush=True)


if __name__ == "__main__":
    main()

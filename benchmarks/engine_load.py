"""Many requests in one engine: what sharing passes gives, what ten thousand prompts take, what equal beginnings cost.

    OMP_NUM_THREADS=2 python benchmarks/engine_load.py                  # all three, a few minutes
    python benchmarks/engine_load.py concurrent --rows 8 --runs 5       # 8 requests at a time against one after another
    python benchmarks/engine_load.py memory --prompts 10000             # peak memory against that of 16 prompts
    python benchmarks/engine_load.py beginnings --requests 200          # tokens encoded for a beginning of 2,000
    python benchmarks/engine_load.py --small                    # everything, at sizes that only show that it works

concurrent: the embedded model, both decoders, and autoregressive decoding of a random model of 315 M parameters (the
shape of cpu_pass.py). Every request writes a fixed number of tokens, end ids do not count, and both sides write the
same ones, which is checked. Runs of both sides alternate; the figure is the median of the ratios of neighbouring runs.
memory: each count of prompts runs in a process of its own; its peak is the system's figure (Linux only, /proc).
beginnings: a small random model, since the figure is a count of tokens, not a time. 1 is the beginning encoded once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import clone  # noqa: F401
import torch
from cpu_pass import random_model

from scumble import LLM, GenerationConfig
from scumble.bench.machine import peak_bytes
from scumble.config import LayerConfig, ModelConfig
from scumble.model import Transformer
from scumble.ops import choose

BEGINNING = 2_000  # tokens


def prompts(count: int, length: int, vocab: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocab, (count, length), generator=generator).tolist()


# --- side by side against one after another ---------------------------------------------------------------------------


def compare(llm: LLM, config: GenerationConfig, rows: int, runs: int) -> dict[str, Any]:
    """Aggregate tokens a second of `rows` requests, together and one after another."""
    ids = prompts(rows, 32, llm.model.config.vocab_size)

    def together() -> list[tuple[int, ...]]:
        return [one.token_ids for one in llm.generate_ids(ids, config)]

    def apart() -> list[tuple[int, ...]]:
        return [llm.generate_ids(one, config).token_ids for one in ids]

    if together() != apart():
        raise SystemExit("requests wrote other tokens side by side than one after another")
    times: dict[str, list[float]] = {"together": [], "apart": []}
    for _ in range(runs):
        for name, side in (("together", together), ("apart", apart)):
            started = time.perf_counter()
            tokens = sum(map(len, side()))
            times[name].append(tokens / (time.perf_counter() - started))
    ratios = [a / b for a, b in zip(times["together"], times["apart"], strict=True)]
    return {
        "together_tokens_per_second": statistics.median(times["together"]),
        "apart_tokens_per_second": statistics.median(times["apart"]),
        "ratio": statistics.median(ratios), "ratio_least": min(ratios), "ratio_most": max(ratios),
    }  # fmt: skip


def concurrent(rows: int, runs: int, small: bool) -> dict[str, Any]:
    tokens = 16 if small else 64
    diffusion = {"max_new_tokens": tokens, "ignore_eos": True}
    stepwise = {**diffusion, "decoder": "autoregressive", "temperature": 0.0}
    embedded = LLM.load()
    report = {
        "embedded, diffusion, one candidate": compare(embedded, GenerationConfig(**diffusion, best_of=1), rows, runs),
        "embedded, diffusion, as it ships": compare(embedded, GenerationConfig(**diffusion), rows, runs),
        "embedded, autoregressive": compare(embedded, GenerationConfig(**stepwise), rows, runs),
    }
    if not small:
        large = LLM(random_model(torch.bfloat16).convert(None))
        report["315 M, autoregressive"] = compare(large, GenerationConfig(**stepwise), rows, runs)
    return report


# --- memory of many prompts -------------------------------------------------------------------------------------------


def answer_many(count: int) -> int:
    """Peak bytes of this process, after so many short answers of the embedded model."""
    llm = LLM.load()
    config = GenerationConfig(max_new_tokens=4, canvas_length=4, max_denoising_steps=1, best_of=1, ignore_eos=True)
    answers = llm.generate([f"def number_{number}(value):" for number in range(count)], config)
    assert len(answers) == count
    return peak_bytes()


def memory(counts: list[int]) -> dict[str, Any]:
    peaks = {}
    for count in counts:
        command = [sys.executable, __file__, "child", "--prompts", str(count)]
        peaks[str(count)] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    least, most = peaks[str(counts[0])], peaks[str(counts[-1])]
    return {"peak_bytes": peaks, "difference_bytes": most - least}


# --- equal beginnings -------------------------------------------------------------------------------------------------


def small_model() -> Transformer:
    """Of sizes that the native kernels serve."""
    sliding, full = LayerConfig("sliding_attention", 32, 2), LayerConfig("full_attention", 64, 1)
    config = ModelConfig(
        vocab_size=512, hidden_size=64, intermediate_size=64, num_attention_heads=4, num_experts=4, top_k_experts=2,
        moe_intermediate_size=32, layers=(sliding, sliding, full), sliding_window=128, canvas_length=16,
        max_position_embeddings=4096, image_token_id=None,
    )  # fmt: skip
    dtype = torch.bfloat16
    model = Transformer(config, choose("cpu", dtype, config).ops)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            is_plain = "norm" in name or name.endswith("scale")
            weight.copy_(torch.ones_like(weight) if is_plain else 0.2 * torch.randn(weight.shape, generator=generator))
    return model.to(dtype).eval().requires_grad_(False)


def beginnings(requests: int) -> dict[str, Any]:
    """Tokens encoded for requests that have a beginning in common, those apart that are each one's own."""
    llm = LLM(small_model())
    (start,) = prompts(1, BEGINNING, 512)
    ids = [[*start, *own] for own in prompts(requests, 8, 512, seed=1)]
    llm.generate_ids(ids, GenerationConfig(max_new_tokens=16, max_denoising_steps=1, ignore_eos=True))
    stats = llm.stats()
    own = requests * len(ids[0]) - stats.prefilled - stats.reused
    assert own == 0, "every token of a prompt is either encoded or found"
    return {
        "requests": requests, "beginning": BEGINNING, "prefilled": stats.prefilled, "reused": stats.reused,
        "prefilled_of_beginnings": (stats.prefilled - requests * 8) / BEGINNING, "preempted": stats.preempted,
        "operations": llm.model.ops.name,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "part", nargs="?", default="all", choices=("all", "concurrent", "memory", "beginnings", "child")
    )
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--small", action="store_true", help="sizes that only show that everything works")
    args = parser.parse_args()
    if args.part == "child":
        print(answer_many(args.prompts))
        return
    if args.small:
        args.runs, args.prompts, args.requests = 1, 64, 20
    parts = {
        "concurrent": lambda: concurrent(args.rows, args.runs, args.small),
        "memory": lambda: memory([16, args.prompts]),
        "beginnings": lambda: beginnings(args.requests),
    }
    report = {name: part() for name, part in parts.items() if args.part in ("all", name)}
    report["threads"] = torch.get_num_threads()
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

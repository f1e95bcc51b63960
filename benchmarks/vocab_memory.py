"""Peak extra memory of the vocabulary operator: what one call adds to the resident memory of a process.

    python benchmarks/vocab_memory.py            # the release's sizes: n = 256, V = 262,144, D = 2,816
    python benchmarks/vocab_memory.py --json     # for programs

Each case runs in a process of its own. It makes its inputs, calls the operator once on a small vocabulary (so that
libraries and thread pools are there), gives freed memory back, and then measures how far the real call lifts the
process's resident peak. That counts everything: temporaries, what the matrix library packs, the result itself.
Linux only (/proc).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import time

import clone  # noqa: F401
import torch

from scumble.ops import VocabQuery
from scumble.ops.tiled import TILE, vocab_head

CAP, TEMPERATURE = 30.0, 0.6


def status_bytes(name: str) -> int:
    """A memory figure of this process, e.g. VmRSS (resident now) or VmHWM (its highest so far)."""
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) * 1024 for line in stream if line.startswith(name))


def lower_the_peak() -> None:
    """Give freed memory back to the system and set the recorded peak to what is resident now."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")


def measure(n: int, vocab: int, size: int, dtype: torch.dtype, tile: int = TILE) -> dict[str, float | int | str]:
    """One call with sample, soft embedding and top-8, in this process -> extra bytes and seconds."""
    generator = torch.Generator().manual_seed(0)
    embedding = torch.empty(vocab, size, dtype=dtype)
    for rows in embedding.split(1024):  # no float32 copy of the whole table, which would lift the peak
        rows.copy_(torch.randn(rows.shape, generator=generator) * 0.02)
    hidden = torch.randn(n, size, generator=generator).to(dtype)
    uniforms = torch.rand(n, generator=generator, dtype=torch.float64)

    query = VocabQuery(TEMPERATURE, uniforms=uniforms, want_soft=True, top=8)

    def call(rows: torch.Tensor) -> None:
        vocab_head(hidden, rows, query, cap=CAP, tile=tile)

    call(embedding[:64])
    lower_the_peak()
    before = status_bytes("VmRSS")
    started = time.perf_counter()
    call(embedding)
    seconds = time.perf_counter() - started
    extra = status_bytes("VmHWM") - before
    return {"dtype": str(dtype).removeprefix("torch."), "n": n, "vocab": vocab, "hidden": size,
            "extra_mb": round(extra / 1e6, 1), "seconds": round(seconds, 2)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=262_144)
    parser.add_argument("--hidden", type=int, default=2816)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="one case, in this process")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    args = parser.parse_args()
    if args.dtype:
        print(json.dumps(measure(args.rows, args.vocab, args.hidden, getattr(torch, args.dtype))))
        return
    for dtype in ("float32", "bfloat16"):
        sizes = ["--rows", str(args.rows), "--vocab", str(args.vocab), "--hidden", str(args.hidden)]
        child = subprocess.run(
            [sys.executable, __file__, "--dtype", dtype, *sizes], check=True, capture_output=True, text=True
        )
        found = json.loads(child.stdout)
        plain = found["n"] * found["vocab"] * 4 / 1e6
        print(
            json.dumps(found)
            if args.json
            else f"{dtype:9} n={found['n']} V={found['vocab']} D={found['hidden']}: {found['extra_mb']:6.1f} MB extra, "
            f"{found['seconds']} s (one [n, V] float32 tensor alone: {plain:.1f} MB)"
        )


if __name__ == "__main__":
    main()

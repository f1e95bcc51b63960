"""What a training step of the embedded model costs, with the native operations of ops/cpu/training and without.

    OMP_NUM_THREADS=1 python benchmarks/train_step.py            # both paths in turns on the same batches
    OMP_NUM_THREADS=1 python benchmarks/train_step.py --json

One process, one thread, as `torchrun` starts them. Documents are the shipped held-out functions, each cut short at a
random place, many times over, so that batches hardly ever have the same shape twice, as in training. A step is losses,
gradients and optimizer (Muon); "next token" has no canvases, "with canvases" is the mix of configs/history/13.toml.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path

import clone  # noqa: F401
import numpy as np
import torch

from scumble.bench.timing import figure, interleave
from scumble.evaluate.functions import read_functions
from scumble.llm import embedded_path
from scumble.ops.training import PLAIN_TRAINING
from scumble.train.loop import _losses, task_mix
from scumble.train.precision import choose_training
from scumble.train.read_config import read_train_config
from scumble.train.setup import make_batches, make_optimizer, open_tokenizer, prepare_model

PLAN = """
[data]
train = "texts.jsonl"
validation = "texts.jsonl"
tokenizer = "{embedded}"
[objective]
infill_share = 0.6
repair_share = 0.4
copies = 6
span_share = 0.3
self_conditioning = 0.4
shortest_canvas = 16
[optimizer]
muon = true
[run]
out = "out"
init = "{embedded}"
steps = 1
tokens = {tokens}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096, help="document tokens a step")
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), options.tokens, options.repeats)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for kind, own in results.items():
        print(
            f"{kind}: {own['native']['median']:,.0f} tokens/s "
            f"({own['native']['q1']:,.0f} to {own['native']['q3']:,.0f}), "
            f"torch {own['torch']['median']:,.0f}; ratio {own['ratio']['median']:.2f} "
            f"({own['ratio']['q1']:.2f} to {own['ratio']['q3']:.2f})"
        )


def measure(folder: Path, tokens: int, repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    rng = np.random.default_rng(0)
    texts = [function.text for function in read_functions()]
    texts = [text[: int(rng.integers(60, max(61, len(text))))] for text in texts for _ in range(20)]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "plan.toml").write_text(PLAN.format(embedded=embedded_path(), tokens=tokens))
    config = read_train_config(folder / "plan.toml")
    tokenizer = open_tokenizer(config.data.tokenizer)
    model, specials = prepare_model(config, tokenizer)
    model.train().requires_grad_(True)
    optimizer = make_optimizer(model, config)
    batches = make_batches(config, config.data.train, tokenizer, specials, model.config, "data.train")
    operations = {"native": choose_training(torch.device("cpu"), True), "torch": PLAIN_TRAINING}
    turns = {"native": iter(range(10**9)), "torch": iter(range(10**9))}  # both meet the same batches, in the same order

    def step(path: str, causal_only: bool) -> float:
        """Document tokens a second."""
        batch = batches.batch(next(turns[path]), task_mix(config))
        started = time.perf_counter()
        result = _losses(model, batch, config, 1, causal_only, operations[path])
        result.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return result.tokens / (time.perf_counter() - started)

    results = {}
    for kind, causal_only in (("next token", True), ("with canvases", False)):
        speeds = interleave({path: partial(step, path, causal_only) for path in turns}, repeats, warmup=3)
        ratios = [fast / slow for fast, slow in zip(speeds["native"], speeds["torch"], strict=True)]
        results[kind] = {
            **{path: figure(own).as_json() for path, own in speeds.items()},
            "ratio": figure(ratios).as_json(),
        }
    return results


if __name__ == "__main__":
    main()

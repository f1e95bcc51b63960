"""What a card's host side must do, at toy size.

python tools/stand_in_card --compute -- python tools/stand_in_card/checks.py
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path

import computing
import torch

from scumble import LLM, GenerationConfig
from scumble.decode import make_request
from scumble.engine import Engine, replay
from scumble.ops.triton import ahead
from scumble.ops.triton.ops import TritonOps
from tiny import FULL, SLIDING, prompt, run, save_folder, tiny_config, tiny_model

LAYERS = SLIDING, FULL
FREE = {"ignore_eos": True, "canvas_length": 4}
CANVASES = (
    GenerationConfig(seed=1, commit="sample", entropy_bound=0.4, max_new_tokens=8, max_denoising_steps=4, **FREE),
    GenerationConfig(seed=2, temperature=0, max_new_tokens=8, max_denoising_steps=5, **FREE),
)
STEPS = tuple(
    GenerationConfig(seed=seed, ignore_eos=True, decoder="autoregressive", max_new_tokens=6) for seed in (1, 2)
)
failed = []


def hold(what: str, is_so: bool) -> None:
    print(("ok      " if is_so else "FAILED  ") + what, flush=True)
    if not is_so:
        failed.append(what)


def replays() -> None:
    """Replayed passes and steps write the tokens of eager ones, and those the CPU's."""
    for name, configs in (("canvases", CANVASES), ("steps", STEPS)):
        found = {}
        for device, is_off in (("cpu", True), ("cuda", True), ("cuda", False)):
            engine = Engine(tiny_model(layers=LAYERS).to(device).use(TritonOps(device=device)))
            engine.runner.replays.is_off |= is_off
            shape = tiny_config(layers=LAYERS)
            asked = [make_request(prompt(7 + i, i), config, {}, shape) for i, config in enumerate(configs)]
            found[device, is_off] = [row["ids"] for row in run(engine, asked)]
        hold(f"{name}: a graph was captured", bool(engine.runner.replays.passes))
        hold(f"{name}: eager tokens are the CPU's", found["cuda", True] == found["cpu", True])
        hold(f"{name}: replayed tokens are the eager ones", found["cuda", False] == found["cuda", True])


def loading(folder: Path) -> None:
    """Every operation and format proves itself, and serves."""
    for dtype in (torch.bfloat16, torch.float32, "fp8", "int8", "int4"):
        llm = LLM.load(folder, dtype=dtype, device="cuda")
        config = GenerationConfig(seed=1, max_new_tokens=8, max_denoising_steps=4, **FREE)
        answers = [llm.generate_ids(prompt(7, 0), config).token_ids for _ in range(2)]
        hold(f"{dtype}: all operations serve", isinstance(llm.model.ops, TritonOps) and not llm.model.ops.refused)
        hold(f"{dtype}: the same tokens again", answers[0] == answers[1])


def threads(folder: Path) -> None:
    """Three that ask one model at once."""
    wanted = LLM.load(folder, dtype=torch.float32, device="cpu", ops="reference")
    llm = LLM.load(folder, dtype=torch.float32, device="cuda")
    found: dict[int, tuple[int, ...]] = {}

    def config(seed: int) -> GenerationConfig:
        return GenerationConfig(seed=seed, max_new_tokens=12, max_denoising_steps=4, **FREE)

    def ask(seed: int) -> None:
        found[seed] = tuple(llm.generate_ids(prompt(5 + seed, seed), config(seed)).token_ids)

    asking = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    for seed in range(3):
        alone = tuple(wanted.generate_ids(prompt(5 + seed, seed), config(seed)).token_ids)
        hold(f"thread {seed}: the CPU's tokens", found.get(seed) == alone)


def main() -> int:
    computing.install()
    replay.BUCKETS = (16, 64)  # the interpreter is slow for idle programs too
    ahead.compile_ahead = lambda *_: 0  # it compiles nothing
    replays()
    with tempfile.TemporaryDirectory() as place:
        folder = save_folder(Path(place), tiny_model(layers=LAYERS, dtype=torch.bfloat16))
        loading(folder)
        threads(folder)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())

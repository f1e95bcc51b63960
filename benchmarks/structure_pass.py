"""What a structure adds to a denoise pass: engine steps of one canvas with a structure and of one without, in turns.

    OMP_NUM_THREADS=1 python benchmarks/structure_pass.py                        # the embedded model
    OMP_NUM_THREADS=1 python benchmarks/structure_pass.py --shape wide --vocabulary ggml-vocab-gemma-4.gguf
    OMP_NUM_THREADS=1 python benchmarks/structure_pass.py --schema counted --profile

A shape of bench/shapes.py has random weights. Its vocabulary: `--vocabulary` names a GGUF file with a tokenizer; else
the embedded model's tokens, and pairs of them joined until the shape's vocabulary is full.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import clone  # noqa: F401
import torch

from scumble.bench.shapes import EMBEDDED, random_model, random_prompt, shape
from scumble.checkpoint.gguf.reader import read_gguf
from scumble.checkpoint.gguf.tokenizer import tokenizer_backend
from scumble.decode.make import make_request
from scumble.decode.structured import Structured
from scumble.engine.engine import Engine
from scumble.engine.row import Event, Failed
from scumble.llm import LLM
from scumble.model import Transformer
from scumble.settings import GenerationConfig
from scumble.structure import JsonSchema, Vocabulary, compiled
from scumble.text.token_bytes import token_bytes
from scumble.text.tokenizer import Tokenizer

STRING = {"type": "string"}
ITEM = {
    "type": "object",
    "properties": {"sku": STRING, "quantity": {"type": "integer"}, "price": {"type": "number"}, "note": STRING},
    "required": ["sku", "quantity", "price"],
}
SCHEMAS = {
    "object": {
        "type": "object",
        "properties": {"name": STRING, "age": {"type": "integer"}, "member": {"type": "boolean"}},
        "required": ["name", "age", "member"],
    },
    "nested": {
        "type": "object",
        "properties": {
            "number": {"type": "integer"},
            "currency": {"enum": ["EUR", "USD", "GBP"]},
            "customer": {"type": "object", "properties": {"name": STRING, "email": STRING}, "required": ["name"]},
            "items": {"type": "array", "items": ITEM, "minItems": 1},
        },
        "required": ["number", "currency", "customer", "items"],
    },
    "counted": {
        "type": "object",
        "properties": {"title": {"type": "string", "maxLength": 100}, "tags": {"type": "array", "maxItems": 5}},
        "required": ["title"],
    },
}
SCHEMAS["counted"]["properties"]["tags"]["items"] = {"type": "string", "maxLength": 20}
CONTEXT = 128


def read_vocabulary(path: Path | None, size: int) -> Vocabulary:
    if path is not None:
        return Vocabulary(token_bytes(Tokenizer(tokenizer_backend(read_gguf(path)))), size)
    tokenizer = LLM.load().tokenizer
    assert tokenizer is not None
    tokens = token_bytes(tokenizer)
    known = {token for token in tokens if token}
    words = sorted(known, key=lambda token: (len(token), token))[256:]
    for first, second in product(words, words):
        if len(tokens) >= size:
            break
        if first + second not in known:
            known.add(first + second)
            tokens.append(first + second)
    return Vocabulary(tokens, size)


def canvas_steps(model: Transformer, constraint: Structured | None, passes: int, seed: int) -> Callable[[], None]:
    """An engine in which one request has begun its canvas; each call is a pass over it."""
    engine = Engine(model)
    config = GenerationConfig(
        seed=seed, max_new_tokens=model.config.canvas_length, canvas_length=model.config.canvas_length,
        max_denoising_steps=passes, confidence_threshold=0.0, best_of=1, revisions=0,
    )  # fmt: skip
    request = make_request(random_prompt(model.config, CONTEXT, seed), config, {}, model.config, constraint=constraint)
    engine.add(request, fail)
    while not engine.stats.slots:
        engine.step()
    return engine.step


def fail(event: Event) -> None:
    if isinstance(event, Failed):
        raise event.error


def seconds(task: Callable[[], None]) -> float:
    """Processor time with one thread, so that other programs on the machine count less; wall time with several."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    task()
    return clock() - started


def measure(model: Transformer, constraint: Structured, passes: int, canvases: int) -> tuple[list[float], list[float]]:
    """Seconds of passes with and without the structure, taken in turns; the first two of each canvas warm up."""
    found: tuple[list[float], list[float]] = [], []
    for seed in range(canvases):
        sides = [canvas_steps(model, one, passes + 2, seed) for one in (constraint, None)]
        for number in range(passes + 1):
            times = [seconds(side) for side in sides]
            if number > 0:
                for side, value in zip(found, times, strict=True):
                    side.append(value)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default=EMBEDDED)
    parser.add_argument("--vocabulary", type=Path, help="a GGUF file with a tokenizer")
    parser.add_argument("--schema", choices=SCHEMAS, nargs="+", default=list(SCHEMAS))
    parser.add_argument("--passes", type=int, default=6, help="of each canvas")
    parser.add_argument("--canvases", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.shape == EMBEDDED:
        llm = LLM.load()
        model, tokenizer = llm.model, llm.tokenizer
        assert tokenizer is not None
        vocabulary = Vocabulary(token_bytes(tokenizer), model.config.vocab_size)
    else:
        model = random_model(shape(args.shape), torch.bfloat16, 0, torch.device("cpu"))
        vocabulary = read_vocabulary(args.vocabulary, model.config.vocab_size)
    ends = tuple(model.config.eos_token_ids) or (0,)
    for name in args.schema:
        language = compiled(JsonSchema.of(SCHEMAS[name]), vocabulary, ends)
        constraint = Structured(language, model.ops.canvas_law)
        with_law, without = measure(model, constraint, args.passes, args.canvases)
        ratios = [one / two for one, two in zip(with_law, without, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"{args.shape} {name}: {language.tokens.states} states, {language.tokens.classes} classes; a pass "
            f"{1e3 * statistics.median(with_law):.1f} ms with, {1e3 * statistics.median(without):.1f} without: "
            f"{100 * (middle - 1):+.1f} % ({100 * (low - 1):+.1f} … {100 * (high - 1):+.1f})"
        )
        if args.profile:
            step = canvas_steps(model, constraint, args.passes + 2, 0)
            profile = cProfile.Profile()
            profile.runcall(lambda step=step: [step() for _ in range(args.passes)])
            pstats.Stats(profile).sort_stats("tottime").print_stats(14)


if __name__ == "__main__":
    main()

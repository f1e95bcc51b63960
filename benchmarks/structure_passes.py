"""Passes of constrained answers and of free ones of the same length, from the same prompts, at the same settings.

    OMP_NUM_THREADS=1 python benchmarks/structure_passes.py            # the embedded model

Behind the first third of a held-out Python function stands what asks for a structure; the constrained answer has n
tokens, its end among them. The free answer continues the function itself, for as many tokens (cases in which it ends
before are left out: that would be cheap). Both have canvases that just hold their tokens. Beside passes stands what
the causal model finds of the texts, in nats a token.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import clone  # noqa: F401

from scumble import LLM, Generation, GenerationConfig

SHORT = {"type": "string", "minLength": 3, "maxLength": 24}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "object": ("# the same as JSON:\n", {"json_schema": {
        "type": "object",
        "properties": {"name": SHORT, "arguments": {"type": "integer"}, "returns": {"type": "boolean"}},
        "required": ["name", "arguments", "returns"], "additionalProperties": False,
    }}),
    "nested": ("# the same as JSON:\n", {"json_schema": {
        "type": "object",
        "properties": {
            "function": {"type": "object", "properties": {"name": SHORT, "async": {"type": "boolean"}},
                         "required": ["name", "async"], "additionalProperties": False},
            "arguments": {"type": "array", "items": {
                "type": "object", "properties": {"name": SHORT, "kind": {"enum": ["positional", "keyword", "rest"]}},
                "required": ["name", "kind"], "additionalProperties": False}, "minItems": 1, "maxItems": 3},
        },
        "required": ["function", "arguments"], "additionalProperties": False,
    }}),
    "call": ("# an example:\n", {"regex": r"print\([a-z_]{1,20}\([a-z_0-9, ]{0,30}\)\)"}),
    "header": ("# a function that calls it:\n",
               {"regex": r"def [a-z_]{3,20}\([a-z_]{1,12}(, [a-z_]{1,12}){0,2}\) -> (None|bool|int|str):"}),
    "choice": ("# what it is:\n", {"choices": ["a test of the parser", "a helper of the network code",
                                               "a method of a data class", "a command line entry point"]}),
}  # fmt: skip


@dataclass
class Tally:
    tokens: list[int] = field(default_factory=list)
    bound: list[int] = field(default_factory=list)  # passes
    free: list[int] = field(default_factory=list)
    bound_logprob: list[float] = field(default_factory=list)
    free_logprob: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--examples", action="store_true", help="print the first texts of each kind")
    chosen = parser.parse_args()
    llm = LLM.load()
    lines = (resources.files("scumble") / "evaluate" / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    heads = [opening(text) for text in texts if 300 < len(text) < 1500]
    tallies = {kind: Tally() for kind in KINDS}
    for number, head in enumerate(heads[: chosen.prompts]):
        for kind, (lead, structure) in KINDS.items():
            measure(llm, tallies[kind], head, lead, structure, number, chosen.examples and number < 2)
    print("| | cases | tokens | passes, constrained | passes, free | ratio | nats a token, constrained | free |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, tally in tallies.items():
        if tally.tokens:
            print(row(kind, tally))
    print(row("all", joined(list(tallies.values()))))


def opening(text: str) -> str:
    lines = text.splitlines(keepends=True)
    return "".join(lines[: len(lines) // 3])


def measure(llm: LLM, tally: Tally, head: str, lead: str, structure: dict[str, Any], seed: int, show: bool) -> None:
    prompt = f"{head}\n{lead}"
    first = llm.generate(prompt, GenerationConfig(**structure, max_new_tokens=160, seed=seed))
    n = len(first.token_ids)
    same = {"max_new_tokens": n, "canvas_length": min(n, llm.model.config.canvas_length), "seed": seed, "logprobs": 0}
    bound = llm.generate(prompt, GenerationConfig(**structure, **same))
    length = len(bound.token_ids)
    free = llm.generate(head, GenerationConfig(**same | {"max_new_tokens": length}))
    if show:
        print(f"constrained {bound.passes} {bound.text!r}\nfree        {free.passes} {free.text!r}\n")
    if len(free.token_ids) < length or free.finish_reason != "length":
        return
    tally.tokens.append(length)
    tally.bound.append(sum(bound.passes))
    tally.free.append(sum(free.passes))
    tally.bound_logprob.append(mean_logprob(bound))
    tally.free_logprob.append(mean_logprob(free))


def mean_logprob(generation: Generation) -> float:
    assert generation.logprobs is not None
    return statistics.mean(one.logprob for one in generation.logprobs)


def row(name: str, tally: Tally) -> str:
    mean = statistics.mean
    return (
        f"| {name} | {len(tally.tokens)} | {mean(tally.tokens):.1f} | "
        f"{mean(tally.bound):.2f} | {mean(tally.free):.2f} | "
        f"{sum(tally.bound) / sum(tally.free):.2f} | {mean(tally.bound_logprob):.2f} | {mean(tally.free_logprob):.2f} |"
    )


def joined(tallies: list[Tally]) -> Tally:
    whole = Tally()
    for one in tallies:
        for name in ("tokens", "bound", "free", "bound_logprob", "free_logprob"):
            getattr(whole, name).extend(getattr(one, name))
    return whole


if __name__ == "__main__":
    main()

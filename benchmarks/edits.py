"""What a draft is worth (docs/structure.md): lines of held-out functions, hidden to a degree, and answers begun again.

    OMP_NUM_THREADS=1 python benchmarks/edits.py            # the embedded model

Edits: of one line of each function, a share of the tokens starts as noise (1: all of them, so nothing is known of the
line but what stands around it). How often is the line written as it was, and in how many passes?

Warm starts: a function is continued from noise; then again from what came out, and from that with one token in eight
replaced, with other noise. How many passes, and how much of the answer is the same?
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from importlib import resources

import clone  # noqa: F401

from scumble import LLM, GenerationConfig

STRENGTHS = (0.1, 0.25, 0.5, 0.75, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--functions", type=int, default=60)
    chosen = parser.parse_args()
    llm = LLM.load()
    lines = (resources.files("scumble") / "evaluate" / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [text for line in lines if 200 < len(text := json.loads(line)["text"]) < 1500][: chosen.functions]
    edits(llm, texts)
    warm_starts(llm, texts)


def edits(llm: LLM, texts: list[str]) -> None:
    rng = random.Random(0)
    cases = []
    for text in texts:
        rows = text.splitlines(keepends=True)
        row = rng.choice([i for i in range(1, len(rows)) if len(rows[i].strip()) > 8] or [0])
        begin = len("".join(rows[:row])) + len(rows[row]) - len(rows[row].lstrip())
        cases.append((text, (begin, begin + len(rows[row].strip()))))
    print(f"{len(cases)} lines")
    print("| share of noise | written as it was | passes |")
    print("|---|---|---|")
    for strength in STRENGTHS:
        found = [llm.edit(text, region=region, strength=strength) for text, region in cases]
        same = statistics.mean(one.text == text for one, (text, _) in zip(found, cases, strict=True))
        print(f"| {strength:g} | {same:.2f} | {statistics.mean(sum(one.passes) for one in found):.1f} |")


def warm_starts(llm: LLM, texts: list[str]) -> None:
    rng = random.Random(1)
    passes: dict[str, list[int]] = {"noise": [], "its own last answer": [], "the same, one token in eight replaced": []}
    same: dict[str, list[float]] = {name: [] for name in passes}
    for number, text in enumerate(texts):
        rows = text.splitlines(keepends=True)
        prompt = llm.encode_prompt("".join(rows[: max(1, len(rows) // 3)]))
        config = GenerationConfig(max_new_tokens=48, canvas_length=48, seed=number)
        first = llm.generate_ids(prompt, config)
        ids = list(first.token_ids)
        damaged = [rng.randrange(20, llm.model.config.vocab_size) if rng.random() < 1 / 8 else id for id in ids]
        other = GenerationConfig(max_new_tokens=48, canvas_length=48, seed=number + 1000)
        for name, draft in zip(passes, (None, ids, damaged), strict=True):
            answer = llm.generate_ids(prompt, other, draft=draft)
            passes[name].append(sum(answer.passes))
            same[name].append(statistics.mean(a == b for a, b in zip(answer.token_ids, ids, strict=False)))
    print("\n| the canvas starts from | passes | tokens as in the first answer |")
    print("|---|---|---|")
    for name in passes:
        print(f"| {name} | {statistics.mean(passes[name]):.1f} | {statistics.mean(same[name]):.2f} |")


if __name__ == "__main__":
    main()

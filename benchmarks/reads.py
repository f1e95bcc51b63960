"""Reads (docs/structure.md): what 64 questions on one text cost, and whether probabilities mean what they say.

    OMP_NUM_THREADS=1 python benchmarks/reads.py            # the embedded model; CPU time, in turns

Cost: questions of one call share the text, which is encoded once. Against it stand one forward of as many tokens, and
the same questions asked one by one.

Calibration: an operator of held-out Python functions is hidden, what stands around it is given, and the model says
which of two it was (== or !=, and or or, True or False …). The temperature is fitted on one half of the functions and
judged on the other, in both directions.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable, Iterator
from importlib import resources

import clone  # noqa: F401
import torch

from scumble import LLM
from scumble.calibration import accuracy, calibration_error, fit_temperature, scaled
from scumble.model import Segment
from scumble.reads import Templates

PAIRS = [("==", "!="), ("and", "or"), ("True", "False"), ("<", ">"), ("is None", "is not None"), ("in", "not in")]
QUESTIONS, ROUNDS = 64, 7
LONGEST_CANVAS = 60


def main() -> None:
    llm = LLM.load()
    print(f"operations: {llm.model.ops.name}, threads: {torch.get_num_threads()}")
    texts = [json.loads(line)["text"] for line in held_out().splitlines()]
    cost(llm, texts)
    calibration(llm, texts)


def held_out() -> str:
    return (resources.files("scumble") / "evaluate" / "held_out.jsonl").read_text(encoding="utf-8")


def cost(llm: LLM, texts: list[str]) -> None:
    assert llm.tokenizer is not None
    ids = llm.tokenizer.encode("\n\n".join(texts))[:499]
    text = llm.tokenizer.decode(ids).rpartition("\n")[0] + "\n"
    labels = {"answer": ["True", "False"]}
    templates = [f"{text}flag_{number} = {{{{answer}}}}" for number in range(QUESTIONS)]
    made = Templates(llm, seed=0)
    questions = [made.question(template, labels) for template in templates]
    tokens = [len(look.ids) for number, one in enumerate(questions) for look in made.canvases(number, one, draw=0)]
    context = len(questions[0].context)
    whole = torch.tensor([(ids * 4)[: context + sum(tokens)]]).reshape(-1)
    half = len(whole) // 2 + 1  # the embedded model's context holds 1,024

    def forward() -> None:
        """Every token once, hidden states and all; causal."""
        with torch.no_grad():
            llm.model([Segment(part, llm.model.new_cache(), "encode") for part in whole.split(half)])

    cases: dict[str, Callable[[], object]] = {
        "one forward": forward,
        "one call": lambda: llm.read(templates, labels),
        "one by one": lambda: [llm.read(template, labels) for template in templates],
        "encode the text": lambda: llm.model.encode(torch.tensor(questions[0].context), llm.model.new_cache()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for round_ in range(ROUNDS + 1):
        for name, run in cases.items():
            if name == "one by one" and round_ > 2:
                continue
            started = time.process_time()
            run()
            if round_:
                seconds[name].append(time.process_time() - started)
    base = statistics.median(seconds["one forward"])
    print(f"\n{QUESTIONS} questions on {context} tokens, canvases of {tokens[0]}: {len(whole)} tokens in all")
    for name, own in seconds.items():
        middle = statistics.median(own)
        print(
            f"{name:16} {1000 * middle:8.1f} ms ({1000 * min(own):.1f} … {1000 * max(own):.1f})  {middle / base:6.2f} ×"
        )


def examples(llm: LLM, texts: list[str]) -> Iterator[tuple[int, str, tuple[str, str], str]]:
    """(number of its function, template, labels, the right one)"""
    assert llm.tokenizer is not None
    for number, text in enumerate(texts):
        if "{{" in text:
            continue
        for pair in PAIRS:
            words = sorted(pair, key=len, reverse=True)
            for match in re.finditer(r"(?<=[ (])(?:" + "|".join(map(re.escape, words)) + r")(?=[ ):,\n])", text):
                line_end = text.find("\n", match.end())
                rest = text[match.end() : None if line_end < 0 else line_end]
                head = text[: match.start()]
                line = head.rpartition("\n")[2]
                if not head.count("\n") or len(llm.tokenizer.encode(line + rest)) > LONGEST_CANVAS - 4:
                    continue
                if pair == ("in", "not in") and line.lstrip().startswith("for ") and " if " not in line:
                    continue  # only one of them may stand there
                yield number, f"{head}{{{{answer}}}}{rest}", pair, match.group()


def calibration(llm: LLM, texts: list[str]) -> None:
    found = []
    for number, template, pair, truth in examples(llm, texts):
        if len(llm.tokenizer.encode(template)) > 900:  # type: ignore[union-attr]
            continue
        read = llm.read(template, {"answer": pair})
        found.append((number, pair, read.probabilities["answer"], truth))
    print(f"\n{len(found)} hidden operators of {len({one[0] for one in found})} functions")
    print("| | cases | the commoner one | accuracy | ECE as read | temperature fitted on the other half | ECE then |")
    print("|---|---|---|---|---|---|---|")
    for pair in [*PAIRS, None]:
        row([one for one in found if pair in (None, one[1])], "all" if pair is None else " or ".join(pair))


def row(found: list, name: str) -> None:
    halves = [[one for one in found if one[0] % 2 == half] for half in (0, 1)]
    if min(map(len, halves)) < 20:
        return
    after, truths, temperatures = [], [], []
    for own, other in (halves, halves[::-1]):
        temperature = fit_temperature([one[2] for one in other], [one[3] for one in other])
        temperatures.append(f"{temperature:.2f}")
        after += [scaled(one[2], temperature) for one in own]
        truths += [one[3] for one in own]
    said = [one[2] for half in halves for one in half]
    commoner = statistics.mean(
        truth == sorted(one[1])[0] for one, truth in zip(found, [o[3] for o in found], strict=True)
    )
    print(
        f"| {name} | {len(found)} | {max(commoner, 1 - commoner):.3f} | {accuracy(said, truths):.3f} | "
        f"{calibration_error(said, truths):.3f} | {', '.join(temperatures)} | {calibration_error(after, truths):.3f} |"
    )


if __name__ == "__main__":
    main()

"""Whether answers that a JSON Schema constrains are valid, through a model, for a collection of schemas.

    python benchmarks/structure_validity.py --schemas FOLDER [--random] [--sample 500] [--seconds 600]

FOLDER holds *.json: schemas, or {"schema": …}. Of every schema that is supported, texts are asked for with random
settings: both decoders, temperatures from 0 to 1.5, room for the fewest tokens that an answer needs and somewhat
more, canvases of several lengths, candidates and revisions. The judge is jsonschema-rs; llguidance, where it takes
the schema, is a second one. --random: the embedded model's vocabulary with random weights. The exit code is 1 where
anything is invalid.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import clone  # noqa: F401
import jsonschema_rs
import llguidance
import torch

from scumble import LLM, Generation, GenerationConfig
from scumble.bench.shapes import random_model
from scumble.errors import RequestsFailed
from scumble.structure import JsonSchema, StructureError

LONGEST = 400  # tokens; schemas whose shortest answer is longer are counted and left out
TOGETHER = 10  # schemas whose texts share a batch
# llguidance writes numbers as JSON.stringify does and takes no control characters that JSON allows.
UNUSUAL = re.compile(rb"\.[0-9]*0(?![0-9])|\x7f|\xef\xbb\xbf")
BYTES = llguidance.LLTokenizer("byte")


@dataclass
class Case:
    name: str
    schema: Any
    judge: Any
    configs: list[GenerationConfig] = field(default_factory=list)


def settings(schema: Any, fewest: int, number: int, chance: random.Random) -> GenerationConfig:
    decoder = chance.choice(("diffusion", "diffusion", "autoregressive"))
    canvases: dict[str, Any] = {
        "canvas_length": chance.choice((64, 64, 16, 5, "auto")),
        "best_of": chance.choice((1, 1, 2)),
        "revisions": chance.choice((0, 0, 1)),
        "max_denoising_steps": chance.choice((1, 2, 4)),
    }
    return GenerationConfig(
        json_schema=schema,
        max_new_tokens=fewest + chance.choice((0, 1, 60)),
        seed=number,
        decoder=decoder,
        temperature=chance.choice((0, 0.7, 1.5)),
        **(canvases if decoder == "diffusion" else {}),
    )


def fault(case: Case, config: GenerationConfig, answer: Generation | None) -> str | None:
    """What is wrong with an answer, in words; None: nothing."""
    if answer is None:
        return "no answer"
    try:
        value = json.loads(answer.text)
    except ValueError:
        return "no JSON"
    if answer.finish_reason != "stop" or len(answer.token_ids) > (config.max_new_tokens or 0):
        return f"ended by {answer.finish_reason}, {len(answer.token_ids)} of {config.max_new_tokens} tokens"
    if not case.judge.is_valid(value):
        return "invalid"
    return None if answer.parsed == value else "parsed otherwise"


def second_opinion(schema: Any, text: str) -> bool | None:
    """What llguidance says; None where it has nothing to say."""
    source = json.dumps(schema)
    grammar = llguidance.LLMatcher.grammar_from_json_schema(source)
    matcher = llguidance.LLMatcher(BYTES, grammar)
    if matcher.get_error() or "multipleOf" in source or UNUSUAL.search(text.encode()):
        return None
    ids = BYTES.tokenize_bytes(text.encode())
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def judged(llm: LLM, cases: list[Case], counts: Counter[str]) -> None:
    asked = [(case, config) for case in cases for config in case.configs]
    try:
        requests = [llm.text_request("As JSON:", config) for _, config in asked]
        answers: list[Generation | None] = list(llm.answer_all(requests))
    except RequestsFailed as error:
        answers = error.generations
        print(error, file=sys.stderr)
    for (case, config), answer in zip(asked, answers, strict=True):
        counts["texts"] += 1
        wrong = fault(case, config, answer)
        second = None if answer is None or wrong else second_opinion(case.schema, answer.text)
        counts["judged twice"] += second is not None
        if wrong is None and second is not False:
            continue
        counts["bad"] += 1
        print(case.name, wrong or "llguidance refuses it", config.decoder, config.seed, answer and answer.text[:300])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--schemas", type=Path, required=True)
    parser.add_argument("--sample", type=int, default=500, help="schemas, in a random order")
    parser.add_argument("--texts", type=int, default=3, help="of each schema")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--random", action="store_true", help="random weights instead of the embedded model's")
    options = parser.parse_args()
    llm = LLM.load()
    if options.random:
        llm = LLM(random_model(llm.model.config, torch.float32, options.seed, torch.device("cpu")), llm.tokenizer)
    chance = random.Random(options.seed)
    files = sorted(options.schemas.rglob("*.json"))
    chance.shuffle(files)
    counts: Counter[str] = Counter()
    cases: list[Case] = []
    began = time.monotonic()
    for number, file in enumerate(files[: options.sample]):
        if time.monotonic() - began > options.seconds:
            break
        schema = json.loads(file.read_text(encoding="utf-8"))
        schema = schema.get("schema", schema) if isinstance(schema, dict) else schema
        try:
            judge = jsonschema_rs.validator_for(schema, validate_formats=True)
        except Exception:  # remote references, other drafts' faults: nobody to judge
            counts["without a judge"] += 1
            continue
        try:
            fewest = llm.structuring.constraint(JsonSchema.of(schema)).compiled.tokens.fewest
        except StructureError:
            counts["refused"] += 1
            continue
        if fewest > LONGEST:
            counts["longer"] += 1
            continue
        counts["schemas"] += 1
        configs = [settings(schema, fewest, 1000 * number + i, chance) for i in range(options.texts)]
        cases.append(Case(file.stem, schema, judge, configs))
        if len(cases) == TOGETHER:
            judged(llm, cases, counts)
            cases = []
    judged(llm, cases, counts)
    print(json.dumps(dict(counts) | {"bad": counts["bad"], "seconds": round(time.monotonic() - began)}))
    sys.exit(1 if counts["bad"] else 0)


if __name__ == "__main__":
    main()

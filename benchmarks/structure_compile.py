"""What compiling a JSON Schema costs, and which schemas of a collection are supported, and rightly.

    python benchmarks/structure_compile.py                                             # the embedded model's vocabulary
    python benchmarks/structure_compile.py --vocabulary ggml-vocab-gemma-4.gguf
    python benchmarks/structure_compile.py --vocabulary … --schemas FOLDER --sample 500

FOLDER holds *.json, at any depth: schemas, or {"schema": …, "tests": [{"data": …}]}, in groups by the part of their
name before --- or _. Of every schema that is supported, random texts of the language are judged by jsonschema-rs, and
so are the tests: nothing invalid may be accepted. How many valid ones are says how much a language leaves out.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import clone  # noqa: F401
import jsonschema_rs
import numpy as np

from scumble.checkpoint.gguf.reader import read_gguf
from scumble.checkpoint.gguf.tokenizer import tokenizer_backend
from scumble.llm import embedded_path
from scumble.structure import JsonSchema, StructureError, Vocabulary
from scumble.structure.automaton import DEAD, START, Automaton, Budget
from scumble.structure.classes import classify
from scumble.text.token_bytes import token_bytes
from scumble.text.tokenizer import Tokenizer

STRING, NUMBER = {"type": "string"}, {"type": "number"}
OWN: dict[str, Any] = {
    "object": {"type": "object", "properties": {"name": STRING, "age": {"type": "integer"}}, "required": ["name"]},
    "any JSON": {},
    "string of 200": {"type": "string", "maxLength": 200},
    "list of enums": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 20},
    "invoice": {
        "type": "object",
        "properties": {
            "number": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{6}$"},
            "date": {"type": "string", "format": "date"},
            "customer": {
                "type": "object",
                "properties": {"name": {**STRING, "maxLength": 80}, "email": {**STRING, "format": "email"}},
                "required": ["name"],
            },
            "items": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"sku": {**STRING, "maxLength": 20}, "count": {"type": "integer"}, "price": NUMBER},
                    "required": ["sku", "count", "price"],
                },
            },
        },
        "required": ["number", "date", "customer", "items"],
    },
    "tree": {"$ref": "#/$defs/t", "$defs": {"t": {"type": "object", "properties": {
        "v": NUMBER, "l": {"$ref": "#/$defs/t"}, "r": {"$ref": "#/$defs/t"}}, "required": ["v"]}}},
}  # fmt: skip


@dataclass
class Report:
    """Of one group of schemas. seconds: of compiling, without caches; wrong: what must not be."""

    seconds: list[float] = field(default_factory=list)
    states: list[int] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    broken: int = 0
    texts: int = 0
    valid_tests: int = 0
    valid_accepted: int = 0
    invalid_tests: int = 0
    wrong: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=Path, help="a GGUF file with a tokenizer; left out: the embedded model's")
    parser.add_argument("--schemas", type=Path, help="a folder of schemas; left out: a few of this file")
    parser.add_argument("--sample", type=int, default=500, help="how many of the folder, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--texts", type=int, default=4, help="random texts of each language to judge")
    chosen = parser.parse_args()
    vocabulary = read_vocabulary(chosen.vocabulary)
    vocabulary.levels  # noqa: B018  made once for every model
    print(f"vocabulary of {vocabulary.size} ids")
    rng = random.Random(chosen.seed)
    reports: dict[str, Report] = {}
    for group, name, schema, tests in schemas_of(chosen.schemas, chosen.sample, rng):
        report = reports.setdefault(group, Report())
        measure(report, name, schema, tests, vocabulary, rng, chosen.texts)
        if chosen.schemas is None and report.seconds:
            print(f"{name:14} {1000 * report.seconds[-1]:8.1f} ms {report.states[-1]:6} states")
    for group, report in sorted(reports.items()):
        show(group, report)
    if len(reports) > 1:
        show("all", joined(list(reports.values())))


def read_vocabulary(path: Path | None) -> Vocabulary:
    if path is None:
        return Vocabulary(token_bytes(Tokenizer.from_folder(embedded_path())))
    return Vocabulary(token_bytes(Tokenizer(tokenizer_backend(read_gguf(path)))))


def schemas_of(folder: Path | None, sample: int, rng: random.Random):
    """(group, name, schema, tests)"""
    if folder is None:
        yield from (("own", name, schema, []) for name, schema in OWN.items())
        return
    files = sorted(folder.rglob("*.json"))
    for file in rng.sample(files, min(sample, len(files))):
        found = json.loads(file.read_text())
        tests = found.get("tests", []) if isinstance(found, dict) and "schema" in found else []
        schema = found["schema"] if isinstance(found, dict) and "schema" in found else found
        group = file.stem.partition("---" if "---" in file.stem else "_")[0]
        yield group, file.stem, schema, tests


def measure(
    report: Report, name: str, schema: Any, tests: list[Any], vocabulary: Vocabulary, rng: random.Random, texts: int
) -> None:
    try:
        validator = jsonschema_rs.validator_for(schema, validate_formats=True)
    except (ValueError, TypeError):
        report.broken += 1  # no schema, or one that leads outside: nobody can judge
        return
    started = time.process_time()
    try:
        machine = JsonSchema.of(schema).automaton(budget := Budget())
        classify(machine, vocabulary, (vocabulary.size - 1,), budget)
    except StructureError as error:
        reason = re.split(r", at #|; ask for| \(at char| '|: [A-Z#]", str(error))[0]
        report.refused[re.sub(r"[\d.]+", "n", reason)[:110]] += 1
        return
    report.seconds.append(time.process_time() - started)
    report.states.append(machine.states)
    away = distances(machine)
    for _ in range(texts):
        text = walk(machine, away, rng)
        report.texts += 1
        if not validator.is_valid(json.loads(text)):
            report.wrong.append(f"{name} writes {text[:200]!r}")
    for test in tests:
        accepted = machine.accepts(json.dumps(test["data"], ensure_ascii=False).encode("utf-8", "replace"))
        if validator.is_valid(test["data"]):
            report.valid_tests += 1
            report.valid_accepted += accepted
        else:
            report.invalid_tests += 1
            if accepted:
                report.wrong.append(f"{name} accepts {json.dumps(test['data'])[:200]}")


def distances(machine: Automaton) -> np.ndarray:
    """Fewest bytes to an end, from each state."""
    far = 10**9
    found = np.where(machine.ends, 0, far)
    while True:
        shorter = np.minimum(found, 1 + np.where(machine.step == DEAD, far, found[machine.step]).min(1))
        shorter[DEAD] = far
        if (shorter == found).all():
            return found
        found = shorter


def walk(machine: Automaton, away: np.ndarray, rng: random.Random, length: int = 300) -> bytes:
    """A random text of the language; after `length` bytes it takes the shortest way to an end."""
    state, text = START, bytearray()
    while not (machine.ends[state] and (len(text) >= length or rng.random() < 0.3)):
        columns = np.flatnonzero(machine.step[state])
        if not len(columns):
            break
        column = int(rng.choice(columns.tolist()))
        if len(text) >= length:
            column = int(min(columns, key=lambda c: away[machine.step[state, c]]))
        text.append(int(rng.choice(np.flatnonzero(machine.column[:256] == column).tolist())))
        state = int(machine.step[state, column])
    return bytes(text)


def show(group: str, report: Report) -> None:
    refused, supported = sum(report.refused.values()), len(report.seconds)
    judged = refused + supported
    line = f"{group}: {judged} schemas, {supported} supported ({100 * supported / max(1, judged):.1f} %)"
    if report.broken:
        line += f", {report.broken} more that jsonschema-rs cannot read"
    print("\n" + line)
    if supported:
        ms = sorted(1000 * one for one in report.seconds)
        print(
            f"  compile, CPU ms: median {statistics.median(ms):.1f}, 95 % {ms[int(0.95 * (len(ms) - 1))]:.0f}, "
            f"worst {ms[-1]:.0f}; states: median {int(statistics.median(report.states))}, most {max(report.states)}"
        )
    print(
        f"  {report.texts} texts written; tests: {report.valid_accepted} of {report.valid_tests} valid ones accepted, "
        f"{report.invalid_tests} invalid ones; wrong: {len(report.wrong)}"
    )
    for why, count in report.refused.most_common(12 if group == "all" else 3):
        print(f"  refused {count:4}  {why}")
    for one in report.wrong[:5]:
        print(f"  WRONG  {one}")


def joined(reports: list[Report]) -> Report:
    whole = Report()
    for one in reports:
        for name in ("seconds", "states", "wrong"):
            getattr(whole, name).extend(getattr(one, name))
        whole.refused.update(one.refused)
        for name in ("broken", "texts", "valid_tests", "valid_accepted", "invalid_tests"):
            setattr(whole, name, getattr(whole, name) + getattr(one, name))
    return whole


if __name__ == "__main__":
    main()

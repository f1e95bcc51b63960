"""What is written is accepted by llguidance, a grammar engine with a JSON Schema front end of its own, as well."""

import json
import random
import re

import llguidance
import pytest

from scumble.structure import StructureError
from structure.test_schema import compile_
from structure.walks import random_schema, walk

# What is valid, and not accepted there: zeros at the end of a fraction; U+007F; and U+FEFF, which is \s in ECMA 262.
UNUSUAL = re.compile(rb"\.[0-9]*0(?![0-9])|\x7f|\xef\xbb\xbf")
BYTES = llguidance.LLTokenizer("byte")


@pytest.mark.parametrize("ten", range(6))
def test_llguidance_accepts_it_too(ten: int) -> None:
    assert sum(judged(seed) for seed in range(20 * ten, 20 * ten + 20)) > 20


@pytest.mark.slow
def test_llguidance_accepts_many() -> None:
    assert sum(judged(seed) for seed in range(120, 2000)) > 4000


def judged(seed: int) -> int:
    """How many texts of a random schema could be judged; all of them must be accepted."""
    rng = random.Random(seed)
    schema = random_schema(rng)
    try:
        machine = compile_(schema)
    except StructureError:
        return 0
    source = json.dumps(schema)
    grammar = llguidance.LLMatcher.grammar_from_json_schema(source)
    if llguidance.LLMatcher(BYTES, grammar).get_error() or "multipleOf" in source:
        return 0  # keywords that it says it does not know, and multiples, of which it accepts some only
    texts = [text for text in (walk(machine, rng) for _ in range(6)) if not UNUSUAL.search(text)]
    for text in texts:
        matcher = llguidance.LLMatcher(BYTES, grammar)
        ids = BYTES.tokenize_bytes(text)
        assert matcher.try_consume_tokens(ids) == len(ids), (schema, text)
        assert matcher.is_accepting(), (schema, text)
    return len(texts)

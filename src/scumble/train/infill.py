"""Fill-in-the-middle rows: a document with a hole, the hole's text last.

    <bos> <fim_prefix> before <fim_suffix> after <fim_middle> middle <eos>

Everything up to <fim_middle> is the prompt; canvases tile the middle. Holes lie at token borders: half of them are one
line, a quarter some lines, a quarter any span. A line's hole begins behind its indentation and ends before the next
newline, which is where a person's cursor stands and where the tokenizer cuts anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scumble.text import Tokenizer

PREFIX, SUFFIX, MIDDLE = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"
MOST_LINES = 6


@dataclass(frozen=True)
class InfillTokens:
    """Ids of the three markers; newline [V] bool: which ids decode to text with a newline in it."""

    prefix: int
    suffix: int
    middle: int
    newline: NDArray[np.bool_]


def infill_tokens(tokenizer: Tokenizer) -> InfillTokens | None:
    """The markers of a tokenizer, or None when it lacks one of them."""
    ids = [tokenizer.special_tokens.get(text) for text in (PREFIX, SUFFIX, MIDDLE)]
    if any(token is None for token in ids):
        return None
    newline = np.array(["\n" in tokenizer.decode([token]) for token in range(tokenizer.vocab_size)])
    prefix, suffix, middle = (int(token) for token in ids if token is not None)
    return InfillTokens(prefix, suffix, middle, newline)


def hole(body: NDArray, newline: NDArray[np.bool_], rng: np.random.Generator) -> tuple[int, int]:
    """Where a document's hole begins and ends: token positions 0 ≤ begin < end ≤ len(body)."""
    breaks = np.flatnonzero(newline[body])
    kind = rng.random()
    if kind < 0.75 and len(breaks) >= 2:
        lines = 1 if kind < 0.5 else int(rng.integers(2, MOST_LINES + 1))
        first = int(rng.integers(0, len(breaks)))
        begin = int(breaks[first]) + 1
        last = first + lines
        end = int(breaks[last]) if last < len(breaks) else len(body)
        if begin < end:
            return begin, end
    begin, end = sorted(rng.choice(len(body) + 1, size=2, replace=False).tolist())
    return begin, end


def infill_rows(
    bodies: list[NDArray], tokens: InfillTokens, bos: int, eos: int, length: int, rng: np.random.Generator
) -> tuple[list[NDArray], int]:
    """Rows of ids, each at most `length` long, and the length of the prompt, which all share.

    To share it, the longer prompts lose tokens far from the hole: at the start of the prefix, then at the suffix's end.
    """
    parts = []
    for body in bodies:
        begin, end = hole(body, tokens.newline, rng)
        parts.append((body[:begin], body[begin:end], body[end:]))
    context = min(len(before) + len(after) for before, _, after in parts)
    context = min(context, max(0, length - 6 - 32))  # room for a middle even in the longest documents
    prompt = context + 4
    rows = []
    for before, middle, after in parts:
        surplus = len(before) + len(after) - context
        drop = min(surplus, len(before))
        before, after = before[drop:], after[: len(after) - (surplus - drop)]
        row = [[bos, tokens.prefix], before, [tokens.suffix], after, [tokens.middle], middle, [eos]]
        rows.append(np.concatenate(row).astype(np.int64)[:length])
    return rows, prompt

"""Fill-in-the-middle rows: a document with a hole, the hole's text last.

    <bos> <fim_prefix> before <fim_suffix> after <fim_middle> middle <eos>

and, to learn repair, the same with the damaged text of the hole in sight:

    <bos> <fim_prefix> before <fim_suffix> after <repair> damaged <fim_middle> middle <eos>

The damaged text is then also what a canvas may start from in place of noise, as in `LLM.repair`: a draft.

Everything up to <fim_middle> is the prompt; canvases tile the middle. Holes lie at token borders. All holes of a batch
are of one kind, so that their middles need about as many canvases: one line (half of the batches), some lines (a
quarter), any span (a quarter). A line's hole begins behind its indentation and ends before the next newline, which is
where a person's cursor stands and where the tokenizer cuts anyway.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scumble.text import Tokenizer
from scumble.text.infill import MIDDLE, PREFIX, REPAIR, SUFFIX
from scumble.train.damage import damage

MOST_LINES = 6
UNDAMAGED = 0.1  # share of the "damaged" texts that are right, so that right ones are learnt to be left alone
LEAST_ROOM = 32  # tokens of a row that the context leaves to the middle, even in the longest documents

Kind = Literal["line", "lines", "span"]


@dataclass(frozen=True)
class InfillTokens:
    """Ids of the markers (repair: None where the tokenizer lacks it); newline [V] bool: which ids decode to text with a
    newline in it; broken: a damaged version of some ids."""

    prefix: int
    suffix: int
    middle: int
    newline: NDArray[np.bool_]
    repair: int | None = None
    broken: Callable[[NDArray, random.Random], NDArray] = lambda ids, rng: ids


def infill_tokens(tokenizer: Tokenizer) -> InfillTokens | None:
    """The markers of a tokenizer, or None when it lacks one of the three of infilling."""
    ids = [tokenizer.special_tokens.get(text) for text in (PREFIX, SUFFIX, MIDDLE)]
    if any(token is None for token in ids):
        return None
    newline = np.array(["\n" in tokenizer.decode([token]) for token in range(tokenizer.vocab_size)])
    prefix, suffix, middle = (int(token) for token in ids if token is not None)

    def broken(ids: NDArray, rng: random.Random) -> NDArray:
        if rng.random() < UNDAMAGED:
            return ids
        return np.array(tokenizer.encode(damage(tokenizer.decode(ids.tolist()), rng)), np.int64)

    return InfillTokens(prefix, suffix, middle, newline, tokenizer.special_tokens.get(REPAIR), broken)


def draw_kind(rng: np.random.Generator) -> Kind:
    """The kind of a batch's holes."""
    kind = rng.random()
    return "line" if kind < 0.5 else "lines" if kind < 0.75 else "span"


def hole(body: NDArray, newline: NDArray[np.bool_], kind: Kind, rng: np.random.Generator) -> tuple[int, int]:
    """Where a document's hole begins and ends: token positions 0 ≤ begin < end ≤ len(body).

    A document in which no line can be found gets a span.
    """
    breaks = np.flatnonzero(newline[body])
    if kind != "span" and len(breaks) >= 2:
        lines = 1 if kind == "line" else int(rng.integers(2, MOST_LINES + 1))
        first = int(rng.integers(0, len(breaks)))
        begin = int(breaks[first]) + 1
        last = first + lines
        end = int(breaks[last]) if last < len(breaks) else len(body)
        if begin < end:
            return begin, end
    begin, end = sorted(rng.choice(len(body) + 1, size=2, replace=False).tolist())
    return begin, end


def infill_rows(
    bodies: list[NDArray],
    tokens: InfillTokens,
    bos: int,
    eos: int,
    length: int,
    kind: Kind,
    repair: bool,
    rng: np.random.Generator,
) -> tuple[list[NDArray], int, list[NDArray]]:
    """Rows of ids, each at most `length` long; the length of the prompt, which all share; and by row the damaged
    middle, of which there is nothing without `repair`.

    To share it, the longer prompts lose tokens far from the hole: at the start of the prefix, then at the suffix's end.
    repair: show the damaged middle too. A document with fewer ids than another's damaged lines gets no row.
    """
    parts = []
    for body in bodies:
        begin, end = hole(body, tokens.newline, kind, rng)
        middle = body[begin:end]
        hint = middle[:0]
        if repair:
            assert tokens.repair is not None
            damaged = tokens.broken(middle, random.Random(int(rng.integers(2**32))))
            hint = np.concatenate([[tokens.repair], damaged[: length // 4]])
        parts.append((body[:begin], middle, body[end:], hint))
    longest_hint = max(len(hint) for *_, hint in parts)
    prompt = min(len(before) + len(after) + len(hint) for before, _, after, hint in parts)
    prompt = max(min(prompt, length - 6 - LEAST_ROOM), longest_hint) + 4
    rows, drafts = [], []
    for before, middle, after, hint in parts:
        surplus = len(before) + len(after) + len(hint) + 4 - prompt
        if surplus < 0:  # a document shorter than another one's damaged line
            continue
        drop = min(surplus, len(before))
        before, after = before[drop:], after[: len(after) - (surplus - drop)]
        row = [[bos, tokens.prefix], before, [tokens.suffix], after, hint, [tokens.middle], middle, [eos]]
        rows.append(np.concatenate(row).astype(np.int64)[:length])
        drafts.append(hint[1:])
    return rows, prompt, drafts

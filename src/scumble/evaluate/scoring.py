"""How near a text is to the one that was there."""

from __future__ import annotations

from scumble.evaluate.python import parse


def exact_match(found: str, wanted: str) -> bool:
    """Equal, white space at both ends aside."""
    return found.strip() == wanted.strip()


def edit_similarity(found: str, wanted: str) -> float:
    """1 - Levenshtein distance / length of the longer text, in characters, white space at both ends aside. 0 … 1."""
    a, b = found.strip(), wanted.strip()
    longest = max(len(a), len(b))
    return 1.0 if longest == 0 else 1.0 - levenshtein(a, b) / longest


def error_reduction(found: str, damaged: str, wanted: str) -> float:
    """The share of a damaged text's errors that `found` no longer has, in characters, white space at both ends aside.

    1: all are gone. 0: as many as before. Below 0: more than before; -1 for twice as many, and for all that is worse,
    lest one long answer outweigh all others. `damaged` must differ from `wanted`.
    """
    before = levenshtein(damaged.strip(), wanted.strip())
    return max(-1.0, (before - levenshtein(found.strip(), wanted.strip())) / before)


def levenshtein(a: str, b: str) -> int:
    """Fewest characters to insert, delete or replace to turn a into b. O(len(a) · len(b)) time, O(len(b)) memory."""
    above = list(range(len(b) + 1))
    for row, left in enumerate(a, 1):
        here = [row]
        for column, right in enumerate(b, 1):
            here.append(min(above[column] + 1, here[-1] + 1, above[column - 1] + (left != right)))
        above = here
    return above[-1]


def parses(source: str) -> bool:
    """Whether a text is a Python module, by the grammar of the Python that runs this."""
    return parse(source) is not None

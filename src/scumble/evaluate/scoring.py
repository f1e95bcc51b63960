"""How near a text is to the one that was there."""

from __future__ import annotations

import ast
import warnings


def exact_match(found: str, wanted: str) -> bool:
    """Equal, white space at both ends aside."""
    return found.strip() == wanted.strip()


def edit_similarity(found: str, wanted: str) -> float:
    """1 - Levenshtein distance / length of the longer text, in characters, white space at both ends aside. 0 … 1."""
    a, b = found.strip(), wanted.strip()
    longest = max(len(a), len(b))
    return 1.0 if longest == 0 else 1.0 - levenshtein(a, b) / longest


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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True

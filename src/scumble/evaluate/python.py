"""Is a text Python? Nothing is run."""

from __future__ import annotations

import ast
import warnings


def parse(text: str) -> ast.Module | None:
    """The syntax tree of a Python module, by the grammar of the Python that runs this; None: the text is none, or is
    nested too deeply for the parser."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return None

"""Is a text Python, or the beginning of it? For choosing among candidates, and for scores. Nothing is run."""

from __future__ import annotations

import ast
import codeop
import textwrap
import warnings
from collections.abc import Callable, Sequence

from scumble.text.infill import surroundings
from scumble.text.tokenizer import Tokenizer

_TREE_ONLY = ast.PyCF_ONLY_AST
# What the interactive prompt uses to tell "not yet complete" from "wrong"; codeop has had them since Python 3.11.
_ALLOW_INCOMPLETE: int = codeop.PyCF_ALLOW_INCOMPLETE_INPUT  # pyright: ignore[reportAttributeAccessIssue]
_KEEP_OPEN: int = codeop.PyCF_DONT_IMPLY_DEDENT  # pyright: ignore[reportAttributeAccessIssue]
_BEGINNING = _TREE_ONLY | _ALLOW_INCOMPLETE | _KEEP_OPEN


def python_check(
    tokenizer: Tokenizer, prompt: Sequence[int], stops: Sequence[str]
) -> Callable[[Sequence[int], bool], bool]:
    """For one prompt: a function of an answer's ids, and whether it has ended -> do they make Python of the text?

    The text is what the prompt holds, the answer up to the first stop string, and, of an answer that has ended, what
    the prompt says to stand behind it.
    """
    before, after = surroundings(tokenizer, prompt)

    def check(ids: Sequence[int], ended: bool) -> bool:
        answer = tokenizer.decode(ids)
        ends = [answer.index(stop) for stop in stops if stop in answer]
        if ends:
            answer, ended = answer[: min(ends)], True
        return is_python(before + answer + after) if ended else begins_python(before + answer)

    return check


def parse(text: str) -> ast.Module | None:
    """The syntax tree of a Python module, by the grammar of the Python that runs this; None: the text is none, or is
    nested too deeply for the parser."""
    tree = _compiled(text, _TREE_ONLY)
    return tree if isinstance(tree, ast.Module) else None


def is_python(text: str) -> bool:
    """Whether a text parses, also one that is indented as a whole."""
    return parse(textwrap.dedent(text)) is not None


def begins_python(text: str) -> bool:
    """Whether more lines could make the text's whole lines parse. A last line without an end is not judged."""
    whole, newline, _ = text.rpartition("\n")
    found = _compiled(textwrap.dedent(whole + newline), _BEGINNING)
    return isinstance(found, ast.Module) or "incomplete input" in str(found)


def _compiled(text: str, flags: int) -> ast.Module | Exception:
    try:
        with warnings.catch_warnings(action="ignore"):
            return compile(text, "<text>", "exec", flags)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        return error

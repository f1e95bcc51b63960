"""Functions that the model has not seen, as text: those that come with the package, or a file of your own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scumble.errors import DataError
from scumble.evaluate.python import parse
from scumble.reading import parse_json, read_bytes

SHIPPED = Path(__file__).with_name("held_out.jsonl")
MOST = 2**30  # bytes


@dataclass(frozen=True)
class Function:
    """text: source, not indented. package: where from, "" if unknown."""

    name: str
    package: str
    text: str


def read_functions(path: Path | None = None) -> list[Function]:
    """Functions of a JSON Lines file with a "text" each (and a "package"); None: the shipped ones. Raises DataError."""
    path = SHIPPED if path is None else path
    try:
        lines = read_bytes(path, MOST).decode().split("\n")  # splitlines would cut at U+2028 inside a text too
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f'{path}: cannot be read: {reason}; give a JSON Lines file with a "text" a line') from None
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {number}: not UTF-8; convert the file first") from None
    found = [_function(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DataError(f'{path}: holds no functions; give a JSON Lines file with a "text" a line')
    return found


def _function(path: Path, number: int, line: str) -> Function:
    try:
        record: Any = parse_json(line)
    except ValueError as error:
        raise DataError(f"{path}, line {number}: not JSON: {error}") from None
    if not isinstance(record, dict) or not isinstance(record.get("text"), str) or not record["text"].strip():
        raise DataError(f'{path}, line {number}: must be an object with a string "text" that is not blank')
    package = record.get("package")
    package = package if isinstance(package, str) else ""
    if any("\ud800" <= letter <= "\udfff" for letter in record["text"] + package):
        raise DataError(f"{path}, line {number}: not valid Unicode: it holds a lone surrogate")
    return Function(f"{package or path.name}:{number}", package, record["text"].rstrip() + "\n")


def body_lines(text: str) -> list[int]:
    """Numbers (from 0) of the non-blank lines behind the signature and the docstring of the outermost function.

    Of a text that is not one function, all non-blank lines.
    """
    lines = text.split("\n")
    node = _outermost(text)
    first = 0
    if node is not None:
        body = node.body[1:] if _is_docstring(node.body[0]) else node.body
        first = body[0].lineno - 1 if body else len(lines)
    return [number for number in range(first, len(lines)) if lines[number].strip()]


def docstring_end(text: str) -> int | None:
    """Where (in characters) signature and docstring of the outermost function end; None: it has no docstring or body.

    The end is that of the docstring's last line, without the newline.
    """
    node = _outermost(text)
    if node is None or not _is_docstring(node.body[0]) or len(node.body) < 2:
        return None
    last = node.body[0].end_lineno
    assert last is not None
    if node.body[1].lineno <= last:  # a body on the docstring's line
        return None
    return len("\n".join(text.split("\n")[:last]))


def _outermost(text: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    tree = parse(text)
    nodes = list(_definitions(tree)) if tree is not None else []
    return nodes[0] if len(nodes) == 1 else None


def _definitions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)

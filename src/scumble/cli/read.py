"""`scumble read`: a question about each of many texts."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from scumble.cli import options as o
from scumble.cli.loading import load_llm
from scumble.cli.terminal import error_console
from scumble.cli.texts import File, print_text, text_of
from scumble.errors import InvalidRequest

EPILOG = """\
Examples:

  scumble read reviews.jsonl --question "Is it positive?" --label yes --label no

  echo '{"text": "The food was cold."}' | scumble read - --question "Good?" --label yes --label no --draws 8
"""


def read(
    file: File = "-",
    question: Annotated[str, typer.Option(help="Asked behind each text, on a line of its own.")] = "",
    label: Annotated[list[str] | None, typer.Option(help="A possible answer; give at least two.")] = None,
    draws: Annotated[int, typer.Option(help="Draws of noise to average over.", min=1, max=1024)] = 1,
    seed: Annotated[int, typer.Option(help="Of the noise.", min=0)] = 0,
    model: o.Model = None, dtype: o.Dtype = "auto", device: o.Device = "auto",
) -> None:  # fmt: skip
    """How probable each label is as the answer to a question about each text. In: JSON lines with "text"; out: the same
    lines with "probabilities" and "stderr"."""
    if not question:
        raise InvalidRequest("--question is missing; say what to ask about each text")
    rows = [_row(number, line) for number, line in enumerate(text_of(file).splitlines(), 1) if line.strip()]
    llm = load_llm(model, dtype, device, error_console())
    for row in rows:
        found = llm.read(f"{row['text']}\n{question} {{{{answer}}}}", {"answer": label or []}, draws=draws, seed=seed)
        out = {**row, "probabilities": found.probabilities["answer"], "stderr": found.stderr["answer"]}
        print_text(json.dumps(out, ensure_ascii=False) + "\n")


def _row(number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"line {number} is not JSON: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise InvalidRequest(f'line {number} must be an object with a "text", {{"text": "…"}}')
    return row

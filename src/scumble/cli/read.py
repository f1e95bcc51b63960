"""`scumble read`: a question about each of many texts."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from scumble.calibration import accuracy, calibration_error, fit_temperature, scaled
from scumble.cli import options as o
from scumble.cli.loading import load_llm
from scumble.cli.terminal import error_console
from scumble.cli.texts import File, print_text, text_of
from scumble.errors import InvalidRequest, shown

EPILOG = """\
Examples:

  scumble read reviews.jsonl --question "Is it positive?" --label yes --label no

  echo '{"text": "The food was cold."}' | scumble read - --question "Good?" --label yes --label no --draws 8

  scumble read labelled.jsonl --question "Good?" --label yes --label no --truth answer > /dev/null
"""

AT_ONCE = 32  # texts that share forwards before their lines are printed


def read(
    file: File = "-",
    question: Annotated[str, typer.Option(help="Asked behind each text, on a line of its own.")] = "",
    label: Annotated[list[str] | None, typer.Option(help="A possible answer; give at least two.")] = None,
    draws: Annotated[int, typer.Option(help="Draws of noise to average over.", min=1, max=1024)] = 1,
    seed: Annotated[int, typer.Option(help="Of the noise.", min=0)] = 0,
    temperature: Annotated[float, typer.Option(help="Divides log-probabilities, for calibration.")] = 1.0,
    truth: Annotated[
        str | None,
        typer.Option(
            help="The field of a line that holds its right label; then accuracy, "
            "calibration error and the temperature that fits are told."
        ),
    ] = None,
    model: o.Model = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    cache_dtype: o.CacheDtype = None,
) -> None:
    """How probable each label is as the answer to a question about each text. In: JSON lines with "text"; out: the same
    lines with "probabilities" and "stderr"."""
    if not question:
        raise InvalidRequest("--question is missing; say what to ask about each text")
    if len(set(label or [])) < 2:
        raise InvalidRequest(
            f"--label must be given at least twice, with different answers; found {shown(label or [])}"
        )
    labels = label or []
    lines = enumerate(text_of(file).split("\n"), 1)
    rows = [_row(number, line, truth, labels) for number, line in lines if line.strip()]
    slot = "answer"
    while any(f"{{{{{slot}}}}}" in text for text in (question, *(row["text"] for row in rows))):
        slot += "_"  # no text's own {{answer}} is taken for it
    console = error_console()
    llm = load_llm(model, dtype, device, cache_dtype, console)
    found: list[dict[str, float]] = []
    for first in range(0, len(rows), AT_ONCE):
        some = rows[first : first + AT_ONCE]
        templates = [f"{row['text']}\n{question} {{{{{slot}}}}}" for row in some]
        reads = llm.read(templates, {slot: labels}, draws=draws, seed=seed, temperature=temperature)
        for row, one in zip(some, reads, strict=True):
            found.append(one.probabilities[slot])
            out = {**row, "probabilities": found[-1], "stderr": one.stderr[slot]}
            print_text(json.dumps(out, ensure_ascii=False) + "\n")
    if truth is not None and found:
        console.print(_calibration(found, [row[truth] for row in rows], temperature))


def _calibration(found: list[dict[str, float]], truths: list[str], temperature: float) -> str:
    """Fitted on every other text and judged on those between. temperature: what `found` was read at."""
    error = calibration_error(found, truths)
    said = f"{len(found)} texts, accuracy {accuracy(found, truths):.3f}, calibration error {error:.3f}"
    if len(found) < 4:
        return said
    fitted = fit_temperature(found[::2], truths[::2])
    after = calibration_error([scaled(one, fitted) for one in found[1::2]], truths[1::2])
    fits = f"--temperature {fitted * temperature:.2f} fits every other text"
    return f"{said}; {fits}, calibration error of those between: {after:.3f}"


def _row(number: int, line: str, truth: str | None, labels: list[str]) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"line {number} is not JSON: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise InvalidRequest(f'line {number} must be an object with a "text", {{"text": "…"}}')
    if truth is not None and row.get(truth) not in labels:
        raise InvalidRequest(f"line {number}: {truth} must be one of the labels, found {shown(row.get(truth))}")
    return row

"""`scumble audit`: check, export and prune a server's audit log."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from scumble.cli.serve_state import State, need_serve, state_folder
from scumble.errors import InvalidRequest

app = typer.Typer(no_args_is_help=True, help="Check, export and prune the audit log of a server.")
COLUMNS: tuple[str, ...] = (
    "seq", "time", "kind", "request", "key", "method", "route", "model", "status", "outcome", "prompt_tokens",
    "completion_tokens", "ms", "hash",
)  # fmt: skip


@app.command()
def verify(
    state: State = None,
    public_key: Annotated[
        Path | None, typer.Option(help="The log's public key, from where you keep it; default: the folder's own.")
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="A head that verify printed earlier and you kept: is it still in the log?")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check every hash, number, signature and stored text. Exit code 1 where anything was changed."""
    need_serve()
    from scumble.serve.audit_review import verify as check

    verdict = check(state_folder(state) / "audit", public_key, head)
    if as_json:
        print(json.dumps(vars(verdict)))
    elif verdict.fault is None:
        print(
            f"whole: {verdict.lines} lines from {verdict.first} to {verdict.last}, {verdict.checkpoints} signatures, "
            f"{verdict.unsigned} lines since the last one, {verdict.pruned} lines pruned, "
            f"{verdict.unfinished} requests without an end"
            f"{f', {verdict.texts} stored texts' if verdict.texts else ''}\nhead: {verdict.head}"
        )
    if verdict.fault is not None:
        print(f"scumble: error: the audit log is NOT whole: {verdict.fault}", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def prune(
    days: Annotated[float | None, typer.Option(help="Delete lines that are older; a signed tombstone remains.")] = None,
    texts_days: Annotated[float | None, typer.Option(help="Delete stored prompts and answers that are older.")] = None,
    state: State = None,
) -> None:
    """Delete what is old. The chain stays verifiable."""
    need_serve()
    from scumble.serve.audit_review import prune as prune_lines
    from scumble.serve.audit_review import prune_texts

    if days is None and texts_days is None:
        raise InvalidRequest("say what to prune: --days, --texts-days, or both")
    for given in (days, texts_days):
        if given is not None and not 0 <= given <= 36_500:
            raise InvalidRequest(f"days must lie in 0 … 36500, found {given}")
    folder = state_folder(state) / "audit"
    if texts_days is not None:
        print(f"{prune_texts(folder, texts_days)} texts deleted")
    if days is not None:
        print(f"{prune_lines(folder, days)} lines deleted")


@app.command()
def export(
    since: Annotated[str, typer.Option(help="From this time on (UTC), e.g. 2026-11-01 or 2026-11-01T12:00.")] = "",
    until: Annotated[str, typer.Option(help="Up to this time.")] = "~",
    form: Annotated[str, typer.Option("--format", help="jsonl or csv.")] = "jsonl",
    state: State = None,
) -> None:
    """Print lines for other tools."""
    need_serve()
    from scumble.serve.audit_review import records

    if form not in ("jsonl", "csv"):
        raise InvalidRequest(f"--format must be jsonl or csv, found {form!r}")
    found = records(state_folder(state) / "audit", since, until)
    if form == "jsonl":
        for record in found:
            print(json.dumps(record, ensure_ascii=False))
        return
    writer = csv.DictWriter(sys.stdout, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(found)

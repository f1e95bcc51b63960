"""`scumble score`: how probable a text is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from scumble.cli import options as o
from scumble.cli.confidence import coloured
from scumble.cli.loading import load_llm
from scumble.cli.terminal import error_console, stdout_is_terminal
from scumble.cli.texts import File, Json, print_text, text_of

if TYPE_CHECKING:
    from scumble.reads import Score

EPILOG = """\
Examples:

  scumble score essay.txt

  echo "the cat sat on the mat" | scumble score --json
"""


def score(
    file: File = "-",
    model: o.Model = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    cache_dtype: o.CacheDtype = None,
    as_json: Json = False,
) -> None:
    """How probable a text is to the causal model, token by token: surprising tokens are red on a terminal."""
    text = text_of(file)
    console = error_console()
    found = load_llm(model, dtype, device, cache_dtype, console).score(text)
    if as_json:
        rows = [{"token": token, "id": id, "logprob": value} for token, id, value in _aligned(found)]
        print_text(json.dumps({"total": found.total, "tokens": rows}, ensure_ascii=False) + "\n")
        return
    if stdout_is_terminal():
        from rich.console import Console

        Console().print(coloured((token, value) for token, _, value in _aligned(found)))
    else:
        for token, _, value in _aligned(found):
            print_text(f"{'' if value is None else f'{value:.4f}'}\t{json.dumps(token, ensure_ascii=False)}\n")
    mean = found.total / max(1, len(found.logprobs))
    console.print(f"{len(found.token_ids)} tokens, log-probability {found.total:.3f} nats, {mean:.3f} a token")


def _aligned(found: Score) -> list[tuple[str, int, float | None]]:
    """Where nothing begins a text, the first token has no log-probability."""
    missing = len(found.token_ids) - len(found.logprobs)
    return list(zip(found.tokens, found.token_ids, [None] * missing + [*found.logprobs], strict=True))

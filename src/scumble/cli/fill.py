"""`scumble fill`: the holes of a text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scumble.cli import options as o
from scumble.cli.confidence import LEGEND, coloured
from scumble.cli.loading import load_llm
from scumble.cli.terminal import error_console, stdout_is_terminal
from scumble.cli.texts import File, Json, print_text, text_of
from scumble.errors import InvalidRequest

if TYPE_CHECKING:
    from scumble.filling import Fill

EPILOG = """\
Examples:

  echo 'def {{hole:name regex=[a-z_]+}}(a, b):' | scumble fill

  scumble fill letter.txt --seed 3 > filled.txt

  scumble fill letter.txt --logprobs 0

A hole is {{hole}} or {{hole:name max=12 regex=… | choices="a|b" | schema="{…}"}}.
"""


@o.setting_options("max_new_tokens", "seed", "temperature", "max_denoising_steps", "best_of", "decoder", "logprobs")
def fill(
    file: File = "-",
    model: o.Model = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    cache_dtype: o.CacheDtype = None,
    as_json: Json = False,
    *,
    settings: Mapping[str, Any],
) -> None:
    """Fill the holes of a text; all else stays byte for byte."""
    if "logprobs" in settings and not as_json and not stdout_is_terminal():
        raise InvalidRequest("--logprobs is printed with --json, or as colours on a terminal; add --json")
    from scumble.filling import parse_template

    template = text_of(file)
    texts, _ = parse_template(template)  # a mistake there shows before the model is read
    console = error_console()
    llm = load_llm(model, dtype, device, cache_dtype, console)
    found = llm.fill(template, o.generation_config(settings))
    if as_json:
        values: dict[str, Any] = {"text": found.text, "holes": found.holes}
        values |= {} if found.logprobs is None else {"logprobs": found.logprobs}
        print_text(json.dumps(values, ensure_ascii=False) + "\n")
    elif found.logprobs is None:
        print_text(found.text)
    else:
        from rich.console import Console

        Console().print(coloured(_pieces(texts, found)), end="")
        console.print(LEGEND, style="dim")


def _pieces(texts: list[str], found: Fill) -> list[tuple[str, float | None]]:
    """The filled text: what the caller wrote has no log-probability."""
    pieces: list[tuple[str, float | None]] = [(texts[0], None)]
    for text, own in zip(texts[1:], (found.logprobs or {}).values(), strict=True):
        pieces += [*own, (text, None)]
    return pieces

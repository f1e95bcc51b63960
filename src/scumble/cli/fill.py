"""`scumble fill`: the holes of a text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from scumble.cli import options as o
from scumble.cli.loading import load_llm
from scumble.cli.terminal import error_console
from scumble.cli.texts import File, Json, print_text, text_of

EPILOG = """\
Examples:

  echo 'def {{hole:name regex=[a-z_]+}}(a, b):' | scumble fill

  scumble fill letter.txt --seed 3 > filled.txt

A hole is {{hole}} or {{hole:name max=12 regex=… | choices="a|b" | schema="{…}"}}.
"""


@o.setting_options("max_new_tokens", "seed", "temperature", "max_denoising_steps", "best_of", "decoder")
def fill(
    file: File = "-", model: o.Model = None,
    dtype: o.Dtype = "auto", device: o.Device = "auto", cache_dtype: o.CacheDtype = None,
    as_json: Json = False,
    *, settings: Mapping[str, Any],
) -> None:  # fmt: skip
    """Fill the holes of a text; all else stays byte for byte."""
    template = text_of(file)
    llm = load_llm(model, dtype, device, cache_dtype, error_console())
    found = llm.fill(template, o.generation_config(settings))
    print_text(
        json.dumps({"text": found.text, "holes": found.holes}, ensure_ascii=False) + "\n" if as_json else found.text
    )

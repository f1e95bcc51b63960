"""`scumble edit`: a region of a text, written anew."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from scumble.cli import options as o
from scumble.cli.loading import load_llm
from scumble.cli.terminal import error_console
from scumble.cli.texts import File, Json, print_text, text_of
from scumble.errors import InvalidRequest

EPILOG = """\
Examples:

  scumble edit notes.txt --region 120:180

  scumble edit main.py --region 0:40 --strength 0.3 --write
"""


@o.setting_options("max_new_tokens", "seed", "temperature", "max_denoising_steps", "best_of")
def edit(
    file: File = "-",
    region: Annotated[str | None, typer.Option(help="Characters from:to, as 120:180; left out: all.")] = None,
    instruction: Annotated[str | None, typer.Option(help="What to do, in words.")] = None,
    strength: Annotated[float, typer.Option(help="Share of the region that starts as noise.", min=0, max=1)] = 0.5,
    write: Annotated[bool, typer.Option("--write", help="Write the file; a diff is printed either way.")] = False,
    model: o.Model = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    cache_dtype: o.CacheDtype = None,
    as_json: Json = False,
    *,
    settings: Mapping[str, Any],
) -> None:
    """Write a region of a text anew, starting from what stands there. Prints what changed."""
    text = text_of(file)
    if write and file == "-":
        raise InvalidRequest("--write needs a file; stdin cannot be written")
    places = None if region is None else _region(region)
    llm = load_llm(model, dtype, device, cache_dtype, error_console())
    found = llm.edit(text, instruction, region=places, strength=strength, config=o.generation_config(settings))
    if write:
        _replace(Path(file), found.text)
    print_text(
        json.dumps({"text": found.text, "diff": found.diff}, ensure_ascii=False) + "\n" if as_json else found.diff
    )


def _region(region: str) -> tuple[int, int]:
    first, colon, last = region.partition(":")
    if not colon or not first.isdecimal() or not last.isdecimal():
        raise InvalidRequest(f"--region must be two places, such as 120:180, found {region!r}")
    return int(first), int(last)


def _replace(path: Path, text: str) -> None:
    """Beside its place, then moved there, with the file's own permissions."""
    try:
        with tempfile.NamedTemporaryFile("wb", dir=path.parent, delete=False) as file:
            file.write(text.encode())
        shutil.copymode(path, file.name)
        os.replace(file.name, path)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be written: {error}") from None

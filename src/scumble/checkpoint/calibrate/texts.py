"""The texts of a calibration file as token ids: plain text, or JSON Lines with a "text" or "messages" each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scumble.checkpoint.text import read_template, read_tokenizer
from scumble.errors import InvalidRequest, ScumbleError, shown
from scumble.reading import parse_json, read_bytes
from scumble.text import ChatTemplate

MOST = 256 * 2**20  # bytes
LINES = (".jsonl", ".json", ".ndjson")


def read_texts(file: Path, source: Path) -> Iterator[list[int]]:
    """Ids of one text after another, by the checkpoint's tokenizer and chat template; without an end id.

    Raises InvalidRequest for a file that cannot be used, with the line; also where there is no tokenizer.
    """
    tokenizer = read_tokenizer(source)
    if tokenizer is None:
        raise InvalidRequest(f"{source}: has no tokenizer, which calibration needs to read {file}")
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    text = _read(file)
    if file.suffix.lower() not in LINES:
        yield begin + tokenizer.encode(text)
        return
    template: list[ChatTemplate] = []  # made when a line needs it
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would cut at U+2028 inside a text too
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            raise InvalidRequest(f"{file}, line {number}: not JSON: {error}") from None
        try:
            if _has(record, "text", str):
                yield begin + tokenizer.encode(record["text"])
            elif _has(record, "messages", list):
                template = template or [read_template(source, tokenizer)]
                yield template[0].encode(record["messages"], tokenizer, add_generation_prompt=False)
            else:
                raise InvalidRequest(f'must be {{"text": "…"}} or {{"messages": […]}}, found {shown(record)}')
        except ScumbleError as error:
            raise InvalidRequest(f"{file}, line {number}: {error}") from None


def _has(record: Any, name: str, kind: type) -> bool:
    return isinstance(record, dict) and isinstance(record.get(name), kind)


def _read(file: Path) -> str:
    try:
        text = read_bytes(file, MOST).decode()
    except OSError as error:
        raise InvalidRequest(f"{file}: the calibration file cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise InvalidRequest(f"{file}, line {number}: not UTF-8; convert the calibration file first") from None
    if not text.strip():
        raise InvalidRequest(f"{file}: the calibration file is empty; give some pages of text like the model's own")
    return text

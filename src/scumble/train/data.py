"""Training text as token ids: JSON Lines, text files, or files packed before."""

from __future__ import annotations

from io import TextIOWrapper
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scumble.errors import DataError
from scumble.reading import open_regular, parse_json, read_text
from scumble.text import Tokenizer
from scumble.train.packed import Packed, open_packed

MAX_DOCUMENT = 1_000_000  # characters; a longer file is no document but a dump


def read_documents(source: str, tokenizer: Tokenizer, what: str) -> Packed:
    """Documents of a source: `NAME.bin` of packed tokens (train/packed.py), a .jsonl file with a "text" each, a text
    file, or a folder of text files. Text is tokenized in memory, in the order of the file. Raises DataError.
    """
    path = Path(source)
    if path.suffix == ".bin":
        packed = open_packed(path.with_suffix(""))
        if len(packed) == 0:
            raise DataError(
                f"{what}: {path}: holds no documents; build the corpus from more packages and pack it again"
            )
        return packed
    if not path.exists():
        raise DataError(f"{what}: {path}: no such file or folder")
    texts = _read_jsonl(path) if path.suffix == ".jsonl" else _read_files(path)
    encoded = [np.asarray(tokenizer.encode(text), np.int32) for text in texts if text]
    if not encoded:
        raise DataError(f"{what}: {path}: holds no text")
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in encoded])]).astype(np.int64)
    return Packed(np.concatenate(encoded), offsets)


def lengths(documents: Packed) -> NDArray[np.int64]:
    return np.diff(documents.offsets)


def _read_jsonl(path: Path) -> list[str]:
    texts = []
    number = 0
    try:
        with TextIOWrapper(open_regular(path), encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                record = parse_json(line) if line.strip() else {"text": ""}
                if not isinstance(record, dict) or not isinstance(record.get("text"), str):
                    raise DataError(f'{path}, line {number}: must be an object with a string "text"')
                texts.append(record["text"])
    except (OSError, ValueError) as error:
        raise DataError(f"{path}, line {number}: cannot be read: {error}") from None
    return texts


def _read_files(path: Path) -> list[str]:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    texts = []
    for file in files:
        try:
            text = read_text(file, 4 * MAX_DOCUMENT)  # a character has up to four bytes
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: not readable as UTF-8 text: {error}") from None
        if len(text) > MAX_DOCUMENT:
            raise DataError(f"{file}: {len(text)} characters; a document may have {MAX_DOCUMENT}; split it")
        texts.append(text)
    return texts

"""Requests that summarize a folder of documents, for `scumble batch`.

python examples/summarize.py docs > requests.jsonl
scumble batch requests.jsonl answers.jsonl --model path/to/diffusiongemma
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

MOST = 24_000  # characters of a document that are sent; a longer one is cut, and its id says so
KINDS = {".md", ".txt", ".rst"}


def main(folder: Path) -> None:
    for path in sorted(path for path in folder.rglob("*") if path.suffix in KINDS and path.is_file()):
        text = path.read_text(encoding="utf-8", errors="replace")
        name = path.relative_to(folder).as_posix() + (" (its beginning)" if len(text) > MOST else "")
        messages = [
            {"role": "system", "content": "Summarize the document in three sentences."},
            {"role": "user", "content": text[:MOST]},
        ]
        body = {"messages": messages, "max_tokens": 256}
        print(json.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

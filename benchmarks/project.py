"""The projection of the release's shape, as the table in docs/performance.md.

    python benchmarks/project.py                        # print it
    python benchmarks/project.py --write docs/performance.md

A test holds the documentation to what this prints.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import clone  # noqa: F401

from scumble.bench.projection import project_release
from scumble.bench.report import projection_cells

BEGIN, END = "<!-- projection: benchmarks/project.py -->", "<!-- end of projection -->"
COLUMNS = ("machine", "weights", "GB", "ms a pass", "bound by", "tok/s", "AR tok/s", "ratio")


def markdown() -> str:
    sheet = project_release()
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|--:|--:|---|--:|--:|--:|"]
    lines += ["| " + " | ".join(projection_cells(row)) + " |" for row in sheet["rows"]]
    sources = "; ".join(f"{name}: {source}" for name, source in sheet["machines"].items())
    return "\n".join([*lines, "", f"Peaks and bandwidths. {sources}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="put it between the marks of this file")
    args = parser.parse_args()
    if args.write is None:
        print(markdown())
        return
    text = args.write.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    args.write.write_text(f"{before}{BEGIN}\n{markdown()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()

"""What a day on a card has found, as tables beside the figures of others (gpu_day.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

PASSES = 16  # of a canvas
PUBLISHED = {  # ms a pass of 256 tokens, one stream
    "vLLM, H100, fp8, 16 fixed passes": "14.9 ms a pass, 1,008 tok/s",
    "vLLM, H100, Gemma 4 26B-A4B, one token at a time": "197 tok/s",
}


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Passes with what follows from several: how many times faster tokens come than by single steps on the same
    weights, both as graphs (x steps), and how many times the time of one row several take (x one row)."""
    timed = {
        (row["format"], row["rows"], row["tokens"] == 1, row["context"]): row["graph ms"]
        for row in rows
        if "graph ms" in row
    }
    out = []
    for row in rows:
        more: dict[str, Any] = {}
        if "graph ms" in row:
            form, count, context, is_step = row["format"], row["rows"], row["context"], row["tokens"] == 1
            one, step = timed.get((form, 1, is_step, context)), timed.get((form, count, True, context))
            if count > 1 and one:
                more["x one row"] = row["graph ms"] / one
            if not is_step and step:
                more["x steps"] = row["tokens"] / PASSES * step / row["graph ms"]
        out.append(row | more)
    return out


def with_share(rows: list[dict[str, Any]], read: float | None) -> list[dict[str, Any]]:
    """Beside every GB/s the share of what the card reads at most."""
    if not read:
        return rows
    return [row | ({"of read": f"{row['GB/s'] / read:.0%}"} if "GB/s" in row else {}) for row in rows]


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Lines with one column a key, as wide as it must be; below them what failed or was left out."""
    good = [row for row in rows if not {"error", "skipped"} & row.keys()]
    keys = list(dict.fromkeys(key for row in good for key in row))
    cells = [keys, *([shown(row.get(key, "")) for key in keys] for row in good)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(keys))]
    for line in cells if good else ():
        yield "  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
    for row in rows:
        if row not in good:
            what = " ".join(shown(part) for key, part in row.items() if key in NAMES)
            yield f"  {what}: {row.get('error') or 'left out: ' + row['skipped']}" if what else f"  {row['error']}"


NAMES = ("format", "rows", "tokens", "context", "stage", "operation")  # of a row: what it is about


def shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "NO", None: "?"}[value]
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def quickest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each product the two best tile sizes; what went wrong only where nothing else is known."""
    by_operation: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_operation.setdefault(row.get("operation", ""), []).append(row)
    return [row for found in by_operation.values() for row in found[:2] if "ms" in row or row is found[0]]


TITLES = {
    "engine": "by the package, one stream, 16 passes a canvas, prompt of 1,024 tokens (first draft, steps: 128)",
    "passes": "passes by the kernels alone; tok/s at 16 passes a canvas",
    "stages": "parts of a pass of one row, context 1,024, each as a graph",
    "tiles": "the two quickest tile sizes of each product; up and down: of both together; linear: of 12",
}


def show(found: dict[str, Any], parts: Sequence[str]) -> None:
    """What the parts of a day have found, as tables."""
    bandwidth = found.get("bandwidth", {})
    for name in parts:
        part = found.get(name, {"error": "there was no time left for it, or it has not run"})
        if isinstance(part, dict) and "error" in part:
            print(f"{name}: {part['error']}")
        elif name in ("self-check", "formats"):
            faults = [row for row in part if row.get("fault") or "error" in row]
            print(f"{name}: " + ("all pass" if not faults else f"{len(faults)} FAULTS"))
            for row in faults:
                print(f"  {row.get('operation') or row.get('format') or 'then'}: {row.get('fault') or row['error']}")
        elif name == "bandwidth":
            print("bandwidth, GB/s: " + ", ".join(f"{k} {v:,.0f}" for k, v in part.items()))
        elif isinstance(part, list):
            rows = compared(part) if name == "passes" else quickest(part) if name == "tiles" else part
            print(f"\n{name}: {TITLES[name]}", *table(with_share(rows, bandwidth.get("read"))), sep="\n")
        else:
            print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in part.items()))
    print()
    for name, theirs in PUBLISHED.items():
        print(f"published, not measured here: {name}: {theirs}")

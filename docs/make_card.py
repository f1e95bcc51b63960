"""Write the figures of docs/model-card.md from reports of `scumble eval`, so that none is typed by hand.

scumble eval --limit 150 --json > bf16.json
scumble eval --limit 150 --dtype int8 --decoder diffusion --json > int8.json
python docs/make_card.py bf16.json int8.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scumble.evaluate.table import LOSSES, estimate, milliseconds, percent, three, two

TARGET = Path(__file__).parent / "model-card.md"
BEGIN, END = "<!-- figures, by docs/make_card.py -->", "<!-- end of figures -->"
SPEED: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("tokens_per_pass", "tokens a pass", two),
    ("passes", "passes an answer", two),
    ("reads", "reads an answer", two),
    ("tokens_per_forward", "tokens a pass or read", two),
    ("evaluations", "evaluations an answer", two),
    ("tokens", "tokens an answer", two),
    ("tokens_per_second", "tokens a second", two),
    ("first_text_seconds", "first text, ms", milliseconds),
)


def figures(report: dict[str, Any], small: dict[str, Any] | None) -> str:
    """One table a task; and one that sets a second number format beside the first."""
    done = [task for task in report["tasks"] if task["status"] == "done"]
    lines = [line for task in done for line in (_losses(task) if "loss" in task else _task(task))]
    if small is not None:
        lines += _formats(done, {task["name"]: task for task in small["tasks"]}, report["dtype"], "int8")
    return "\n".join(lines)


def _losses(task: dict[str, Any]) -> list[str]:
    lines = [f"**{_title(task)}** ({task['cases']} functions)", "", "| | nats a token | bits a byte |", "|---|--:|--:|"]
    for kind, label in LOSSES.items():
        own = task["loss"][kind]
        lines.append(
            f"| {label} | {estimate(own['nats_per_token'], three)} | {estimate(own['bits_per_byte'], three)} |"
        )
    return [*lines, ""]


def _task(task: dict[str, Any]) -> list[str]:
    variants = task["variants"]
    lines = [f"**{_title(task)}** ({task['cases']} cases)", "", f"| | {' | '.join(variants)} |"]
    lines.append("|---|" + "--:|" * len(variants))
    for metric in task["metrics"]:
        cells = (estimate(own["quality"][metric["name"]], percent) for own in variants.values())
        lines.append(f"| {metric['label']} | {' | '.join(cells)} |")
    for key, label, show in SPEED:
        lines.append(f"| {label} | {' | '.join(estimate(own[key], show) for own in variants.values())} |")
    return [*lines, ""]


def _formats(tasks: list[dict[str, Any]], others: dict[str, Any], one: str, two_: str) -> list[str]:
    lines = [f"**{two_} against {one}** (diffusion, same cases)", "", f"| | {one} | {two_} |", "|---|--:|--:|"]
    for task in tasks:
        other = others.get(task["name"])
        if other is None or other["status"] != "done":
            continue
        if "loss" in task:
            pair = (one["loss"]["denoise"]["nats_per_token"] for one in (task, other))
            lines.append(f"| denoise loss | {' | '.join(estimate(value, three) for value in pair)} |")
            continue
        both = [own["variants"]["diffusion"] for own in (task, other)]
        for metric in task["metrics"]:
            cells = (estimate(own["quality"][metric["name"]], percent) for own in both)
            lines.append(f"| {task['title']}: {metric['label']} | {' | '.join(cells)} |")
        lines.append(f"| {task['title']}: passes | {' | '.join(estimate(own['passes'], two) for own in both)} |")
    return [*lines, ""]


def _title(task: dict[str, Any]) -> str:
    return task["title"][0].upper() + task["title"][1:]


def main() -> None:
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    reports = [json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:]]
    text = TARGET.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    made = figures(reports[0], reports[1] if len(reports) > 1 else None)
    TARGET.write_text(f"{head}{BEGIN}\n\n{made}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()

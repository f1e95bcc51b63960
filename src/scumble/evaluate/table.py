"""A report as tables for people: a row a figure, a column a variant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

HEADLINE = "color(173)"
LOSSES = {
    "next_token": "next token",
    "denoise": "denoise",
    "denoise_self_conditioned": "denoise, self-conditioned",
}


def print_report(report: dict[str, Any], console: Console) -> None:
    machine = report["machine"]
    console.print(
        Text(f"{report['model']}, {report['parameters'] / 1e6:.1f} M parameters, {report['dtype']}", "bold"),
        soft_wrap=True,
    )
    about = f"{machine['processor']}, {machine['threads']} threads; seed {report['seed']}; {report['date']}"
    console.print(Text(about, "dim"), soft_wrap=True)
    for task in report["tasks"]:
        console.print()
        title = Text.assemble((task["title"], HEADLINE))
        if task["status"] == "skipped":
            console.print(title)
            console.print(Text(f"  skipped: {task['reason']}"), soft_wrap=True)
            continue
        console.print(title.append(f"  {task['cases']} cases", "dim"))
        console.print(_losses(task["loss"]) if "loss" in task else _variants(task))
        for note in _notes(task):
            console.print(Text(f"  {note}", "dim"), soft_wrap=True)
    console.print()
    console.print(Text("[low … high]: 95 % confidence interval", "dim"))


def _variants(task: dict[str, Any]) -> Table:
    table = _table()
    names = list(task["variants"])
    for name in names:
        table.add_column(Text(name, "dim"), overflow="fold")
    if "difference" in task:
        table.add_column(Text("difference", "dim"), overflow="fold")
    for metric in task["metrics"]:
        own = [task["variants"][name]["quality"][metric["name"]] for name in names]
        gap = [_gap(task["difference"][metric["name"]])] if "difference" in task else []
        table.add_row("  " + metric["label"], *(estimate(one, percent) for one in own), *gap)
    for key, label, show in (
        ("tokens_per_pass", "tokens a pass", two),
        ("passes", "passes an answer", two),
        ("reads", "reads an answer", two),
        ("tokens_per_forward", "tokens a pass or read", two),
        ("evaluations", "evaluations an answer", two),
        ("tokens", "tokens an answer", two),
        ("tokens_per_second", "tokens a second", two),
        ("first_text_seconds", "first text, ms", milliseconds),
    ):
        table.add_row("  " + label, *(estimate(task["variants"][name][key], show) for name in names))
    return table


def _losses(losses: dict[str, Any]) -> Table:
    table = _table()
    for name in ("nats a token", "bits a byte"):
        table.add_column(Text(name, "dim"), overflow="fold")
    for kind, label in LOSSES.items():
        own = losses[kind]
        table.add_row("  " + label, *(estimate(own[key], three) for key in ("nats_per_token", "bits_per_byte")))
    for level in losses["denoise_by_level"]:
        table.add_row(f"    noise {level['from']:.2f} to {level['to']:.2f}", estimate(level["nats_per_token"], three))
    return table


def _notes(task: dict[str, Any]) -> list[str]:
    notes = []
    figures = [*task.get("variants", {}).values(), *([task["loss"]] if "loss" in task else [])]
    long = max(own["too_long"] for own in figures)
    if long:
        counted = "left out" if "loss" in task else "counted as failed"
        notes.append(f"{long} did not fit the model's context, {counted}")
    if "sandbox" in task:
        notes.append(f"sandbox: {', '.join(task['sandbox']) or 'no limits but time'}")
    return notes


def _table() -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=True)
    table.add_column("", style="dim", no_wrap=True, min_width=26)
    return table


def estimate(value: dict[str, Any] | None, show: Callable[[float], str]) -> str:
    """ "12.3 % [10.1 … 14.8]", or – where nothing was measured."""
    if value is None:
        return "–"
    low, high = (show(value[key]).removesuffix(" %") for key in ("low", "high"))
    return f"{show(value['mean'])} [{low} … {high}]"


def _gap(value: dict[str, Any] | None) -> str:
    return estimate(value, lambda share: f"{100 * share:+z.1f}")


def percent(share: float) -> str:
    return f"{100 * share:z.1f} %"  # z: what rounds to zero has no sign


def two(number: float) -> str:
    return f"{number:.2f}" if abs(number) < 100 else f"{number:.0f}"


def three(number: float) -> str:
    return f"{number:.3f}"


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f}"

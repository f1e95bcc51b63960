"""Tables for people, made from the JSON object of run.py. Nothing is computed here that is not in it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scumble.cli.info_table import short
from scumble.cli.terminal import visible

ACCENT = "color(173)"
BUSY = 0.05  # share of the machine that others may use before a reader has to know


def print_report(report: dict[str, Any], console: Console | None = None) -> None:
    console = console or Console(highlight=False, markup=False, emoji=False)
    _head(report, console)
    if "fixed" in report:
        _fixed(report, console)
        _stages(report["stages"], console)
        _limits(report, console)
    if "peer" in report:
        _peer(report["peer"], console)
    if "adaptive" in report:
        _adaptive(report["adaptive"], console)
    if "memory" in report:
        _memory(report["memory"], console)
    if "curves" in report:
        _curves(report["curves"], console)


def _head(report: dict[str, Any], console: Console) -> None:
    model, machine, settings = report["model"], report["machine"], report["settings"]
    kind = f"random weights, seed {model['weights_seed']}" if model["random_weights"] else "trained weights"
    console.print(Text(visible(model["name"]), "bold"))
    rows = [
        ("model", f"{short(round(model['parameters']))} parameters, {model['dtype']}, {kind}"),
        ("machine", f"{machine['processor']}, {machine['usable_cores']} cores, {machine['threads']} threads"),
        ("", machine["gpu"] if "gpu" in machine else f"{machine['instructions']}, {machine['system']}"),
        ("versions", f"scumble {machine['scumble']}, torch {machine['torch']}, Python {machine['python']}"),
        (
            "settings",
            f"{settings['passes']} passes, prompt {settings['prompt_tokens']}, {settings['new_tokens']} new tokens, "
            f"canvas {settings['canvas_length']}, {settings['repeats']} rounds, seed {settings['seed']}",
        ),
    ]
    _grid(console, rows)
    busy = machine["busy_before"]
    if busy is not None and busy > BUSY:
        warning = f"  {busy:.0%} of this machine was busy with other programs: do not quote these figures"
        console.print(Text(warning, "yellow"))
    if settings["quick"]:
        console.print(Text("  a quick look, too few rounds for a measurement", "yellow"))


def _fixed(report: dict[str, Any], console: Console) -> None:
    fixed, steps, prefill = report["fixed"], report["autoregressive"], report["prefill"]
    _title(console, "fixed passes, random prompt, no stopping", "median, spread = interquartile range")
    table = _table("", "figure", "spread")
    table.add_row("prefill", *_rate(prefill["tokens_per_second"], "tok/s"))
    table.add_row("pass", *_milliseconds(fixed["seconds_per_pass"]))
    table.add_row("first draft after", *_milliseconds(fixed["first_draft_seconds"]))
    table.add_row("first committed text after", *_milliseconds(fixed["first_text_seconds"]))
    table.add_row("passes a canvas", f"{fixed['passes_per_canvas']['mean']:.1f}", "")
    table.add_row("diffusion, end to end", *_rate(fixed["tokens_per_second"], "tok/s"))
    table.add_row("autoregressive, end to end", *_rate(steps["tokens_per_second"], "tok/s"))
    table.add_row("autoregressive, steady", *_rate(steps["steady_tokens_per_second"], "tok/s"))
    console.print(table)


def _stages(stages: dict[str, Any], console: Console) -> None:
    slower = stages["instrumentation_slowdown"] - 1
    note = f"mean of {stages['passes_used']} passes; instrumenting them cost {slower:+.1%}"
    _title(console, "where a pass goes", note)
    table = _table("stage", "ms", "share", "GFLOP", "floor ms", "× floor", "bound by")
    for name, row in stages["rows"].items():
        hidden = name in stages["not_separately_visible"]
        table.add_row(
            name,
            "–" if hidden else f"{row['seconds'] * 1e3:.2f}",
            "–" if hidden else f"{row['share']:.1%}",
            f"{row['flops'] / 1e9:.1f}" if "flops" in row else "",
            f"{row['floor_seconds'] * 1e3:.2f}" if "flops" in row else "",
            f"{row['times_floor']:.1f}" if row.get("times_floor") else "",
            row.get("bound", ""),
        )
    table.add_row("total", f"{stages['total_seconds'] * 1e3:.2f}", "100.0%")
    console.print(table)


def _limits(report: dict[str, Any], console: Console) -> None:
    limits = report["limits"]
    _title(console, "this machine's limits", "measured here, best of several tries")
    rates = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in limits["gemm_flops"].items())
    rows = [
        ("matrix products", f"{rates} GFLOP/s"),
        ("memory", f"{limits['bandwidth_bytes_per_second'] / 1e9:.1f} GB/s"),
    ]
    for name, row in report["floors"].items():
        least, taken = row["floor_seconds"] * 1e3, row["seconds"] * 1e3
        what = f"{taken:.2f} ms, floor {least:.2f} ms: {row['times_floor']:.1f} × its floor"
        rows.append((name.replace("_", " "), what))
    _grid(console, rows)


def _peer(peer: dict[str, Any], console: Console) -> None:
    note = f"{peer['dtype']}, same weights, same process, taking turns"
    _title(console, f"against transformers {peer['version']}", note)
    table = _table("seconds", "ours", "spread", "theirs", "spread", "ratio")
    names = {
        "pass": "one pass", "prefill": "prefill", "autoregressive_step": "autoregressive step",
        "generation": "generation, a token",
    }  # fmt: skip
    for name, row in peer["seconds"].items():
        ours, theirs = _milliseconds(row["ours"]), _milliseconds(row["theirs"])
        table.add_row(names[name], *ours, *theirs, f"{row['ratio']:.2f} ×")
    console.print(table)
    check, experts = peer["same_weights_check"], peer["experts_implementation"]
    _grid(
        console,
        [
            ("ratio", "median of theirs over median of ours; above 1 we are quicker"),
            (
                "same weights",
                f"logits differ by {check['ours_and_theirs']:.2g} (root mean square) at a spread of "
                f"{check['scale']:.2g}; same argmax at {check['same_argmax']:.1%} of positions",
            ),
            ("autoregressive", f"theirs: {peer['autoregressive_model']}"),
            (
                "experts",
                ", ".join(f"{name} on the {model} model" for model, name in experts.items()) + " (their quickest here)",
            ),
        ],
    )


def _adaptive(adaptive: dict[str, Any], console: Console) -> None:
    if "skipped" in adaptive:
        _title(console, "adaptive", f"skipped: {adaptive['skipped']}")
        return
    _title(console, "adaptive, real prompts", f"{adaptive['prompts']} prompts, the checkpoint's own settings")
    one, two = adaptive["diffusion"], adaptive["autoregressive"]
    passes = one["passes_per_canvas"]
    table = _table("", "figure", "spread")
    table.add_row("passes a canvas", f"{passes['mean']:.1f}", f"{passes['least']} … {passes['most']}")
    table.add_row("valid tokens a pass", f"{one['tokens_per_pass']:.1f}", "")
    table.add_row("first draft after", *_milliseconds(one["first_draft_seconds"]))
    table.add_row("first committed text after", *_milliseconds(one["first_text_seconds"]))
    table.add_row("diffusion, valid tokens", *_rate(one["tokens_per_second"], "tok/s"))
    table.add_row("autoregressive, valid tokens", *_rate(two["tokens_per_second"], "tok/s"))
    console.print(table)


def _memory(memory: dict[str, Any], console: Console) -> None:
    _title(console, "memory", "resident, one generation in a process of its own")
    rows = [
        ("weights", f"{memory['weights'] / 1e6:,.0f} MB, counted"),
        ("libraries alone", f"{memory['before'] / 1e6:,.0f} MB"),
        ("peak while loading", f"{memory['loaded'] / 1e6:,.0f} MB"),
        ("peak", f"{memory['peak'] / 1e6:,.0f} MB; less libraries {memory['over_weights']:.2f} × the weights"),
    ]
    if "gpu_peak" in memory:
        rows.append(("peak on the card", f"{memory['gpu_peak'] / 1e6:,.0f} MB"))
    _grid(console, rows)


def _curves(curves: dict[str, Any], console: Console) -> None:
    for name, points in curves.items():
        _title(console, f"one pass against {name}", "median ms, and the floor from counts and limits")
        table = _table(name, "ms", "spread", "floor ms")
        for point in points:
            floor = f"{point['floor_seconds'] * 1e3:.2f}"
            table.add_row(f"{point['at']:,}", *_milliseconds(point["seconds"]), floor)
        console.print(table)


def print_projection(sheet: dict[str, Any], console: Console | None = None) -> None:
    """The sheet of projection.py as tables."""
    console = console or Console(highlight=False, markup=False, emoji=False)
    console.print(Text("projection: the release's shape on machines that were not measured", "bold"))
    settings = sheet["settings"]
    console.print(
        Text(
            f"  floors from datasheets; canvas {settings['canvas']}, context {settings['context']}, one stream; "
            f"tok/s at {settings['passes']} passes, AR: autoregressive",
            "dim",
        )
    )
    table = _table("machine", "weights", "GB", "ms/pass", "bound by", "tok/s", "AR", "ratio")
    for row in sheet["rows"]:
        table.add_row(*projection_cells(row))
    console.print(table)


def projection_cells(row: dict[str, Any]) -> list[str]:
    """One machine and format, as a table shows it. What does not fit has no speed."""
    head = [row["machine"], row["format"], f"{row['weight_bytes'] / 1e9:.1f}"]
    if not row["fits"]:
        return [*head, "", "does not fit", "", "", ""]
    speeds = f"{row['tokens_per_second']:,.0f}", f"{row['autoregressive_tokens_per_second']:,.0f}"
    ratio = row["tokens_per_second"] / row["autoregressive_tokens_per_second"]
    return [*head, f"{row['pass_seconds'] * 1e3:.1f}", row["bound"], *speeds, f"{ratio:.1f} ×"]


# --- small parts ------------------------------------------------------------------------------------------------


def _title(console: Console, title: str, note: str) -> None:
    console.print()
    console.print(Text(title, ACCENT), Text(note, "dim"), sep="  ")


def _table(*columns: str) -> Table:
    table = Table(box=None)
    for index, name in enumerate(columns):
        words = index == 0 or name in ("bound by", "weights")
        table.add_column(("  " if index == 0 else "") + name, justify="left" if words else "right", no_wrap=True)
    return _Indented(table)


class _Indented(Table):
    """A table whose first cells begin two columns in, under their title."""

    def __init__(self, table: Table):
        super().__init__(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        self.columns = table.columns

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(f"  {cells[0]}", *cells[1:], **options)


def _grid(console: Console, rows: list[tuple[str, str]]) -> None:
    grid = Table.grid(padding=(0, 2), pad_edge=False)
    grid.add_column(style="dim", no_wrap=True, min_width=16)
    grid.add_column()
    for name, text in rows:
        grid.add_row("  " + name, visible(text))
    console.print(grid)


def _milliseconds(figure: dict[str, Any] | None) -> tuple[str, str]:
    if figure is None:
        return "–", ""
    return f"{figure['median'] * 1e3:,.2f} ms", f"{figure['spread'] * 1e3:.2f}"


def _rate(figure: dict[str, Any] | None, unit: str) -> tuple[str, str]:
    if figure is None:
        return "–", ""
    return f"{figure['median']:,.1f} {unit}", f"{figure['spread']:.1f}"

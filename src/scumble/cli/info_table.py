"""The facts of `scumble info` as tables for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scumble.cli.terminal import visible
from scumble.errors import size


def print_facts(facts: dict[str, Any]) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(Text(visible(facts["path"]), "bold"), soft_wrap=True)
    for title, rows in (
        ("architecture", _architecture(facts["architecture"])),
        ("generation", _generation(facts)),
        ("parameters", _parameters(facts)),
        ("memory, weights only", _memory(facts)),
        ("KV cache", _kv_cache(facts)),
        ("files", _files(facts)),
        ("stored as", _parts(facts["parts"])),
        ("operations", _operations(facts["operations"])),
    ):
        console.print()
        console.print(Text(title, "color(173)"))
        table = Table.grid(padding=(0, 2), pad_edge=False)
        table.add_column(style="dim", no_wrap=True, min_width=16)
        table.add_column(no_wrap=True, justify="left")
        table.add_column(style="dim")
        for row in rows:
            table.add_row("  " + row[0], *row[1:])
        console.print(table)


def _architecture(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("layers", f"{facts['layers']}")]
    for kind in facts["layer_kinds"]:
        reach = f", window {facts['sliding_window']:,}" if kind["kind"] == "sliding" else ""
        heads = f"{kind['key_value_heads']} KV heads of {kind['head_dim']}{reach}"
        rows.append((f"  {kind['kind']}", f"{kind['layers']}", heads))
    return [
        *rows,
        ("hidden size", f"{facts['hidden_size']:,}"),
        ("query heads", f"{facts['query_heads']}"),
        ("dense MLP", f"{facts['dense_width']:,}"),
        ("experts", f"{facts['experts']}", f"{facts['experts_per_token']} a token, width {facts['expert_width']:,}"),
        ("vocabulary", f"{facts['vocabulary']:,}"),
        ("context", f"{facts['context']:,}", "tokens"),
        ("canvas", f"{facts['canvas_length']:,}", "tokens"),
    ]


def _generation(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    own = facts["generation"]
    rows = [(name.replace("_", " "), f"{value}") for name, value in own.items()]
    return rows or [("defaults", "the release's", "the folder sets none of its own")]


def _parameters(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    counts = facts["parameters"]
    share = counts["active"] / counts["total"]
    return [
        ("total", short(counts["total"]), f"{counts['total']:,}; embedding {short(counts['embedding'])}, counted once"),
        ("active", short(counts["active"]), f"{share:.0%}: per token and pass, without the experts not chosen"),
    ]


def _memory(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    both = "scales included, and the head's own copies"
    notes = {"int8": both, "int4": both}
    rows = []
    for name, count in facts["memory"].items():
        fits = facts["fits"].get(name)
        said = [notes.get(name, ""), {True: "", False: "does not fit here", None: ""}[fits]]
        rows.append((name, size(count), "; ".join(part for part in said if part)))
    room, loaded = facts["memory_available"], facts["loads_as"]
    if room:
        rows.append(("available here", size(room["bytes"]), room["limit"]))
    verdict = {True: "fits here", False: "does not fit here", None: ""}[loaded["fits"]]
    rows.append(
        ("to load it", size(loaded["needed"]), f"as {loaded['format']}, with a context of 1,000 tokens; {verdict}")
    )
    return rows


def _kv_cache(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    rows, seen = [], set()
    if room := facts["cache_room"]:
        held = f"for all requests, half of what loading leaves: {room['tokens']:,} tokens of one request"
        rows.append(("room for it here", size(room["bytes"]), held))
    for name, cache in facts["kv_cache"].items():
        if tuple(cache.values()) in seen:  # fp8 takes what int8 takes
            continue
        seen.add(tuple(cache.values()))
        name = ", ".join(other for other, same in facts["kv_cache"].items() if same == cache)
        more = f"per 1,000 tokens; sliding layers: {size(cache['sliding_layers_at_most'])} at most"
        rows.append((name, size(cache["full_layers_per_1000_tokens"]), more))
        rows.append(
            ("", size(cache["at_full_context"]), f"at the whole context of {facts['architecture']['context']:,}")
        )
    return rows


def _files(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    files, left = facts["files"], facts["left_out"]
    formats = ", ".join(f"{size(count)} {name}" for name, count in files["bytes_by_format"].items())
    rows: list[tuple[str, ...]] = [("weights", f"{files['count']} file{'s' if files['count'] > 1 else ''}", formats)]
    if left["vision_tensors"]:
        rows.append(
            ("left out", size(left["vision_bytes"]), f"vision tower, {left['vision_tensors']} tensors; text only")
        )
    tokens = facts["tokenizer_tokens"]
    rows.append(("tokenizer", "none, ids only") if tokens is None else ("tokenizer", f"{tokens:,}", "tokens"))
    rows.append(("chat template", facts["chat_template"] or "none"))
    return rows


def _parts(parts: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [(one["part"], size(one["bytes"]), "; ".join(one["stored_as"])) for one in parts]


def _operations(found: dict[str, Any]) -> list[tuple[str, ...]]:
    batch = "a row's tokens do not depend on its batch" if found["batch_invariant"] else "rows are kept apart"
    why = "asked for" if found["asked_for"] else "chosen"
    built = f", {found['variant']}" if found["variant"] else ""
    rows: list[tuple[str, ...]] = [("serving", f"{found['name']}{built}", f"{why}; {batch}")]
    return rows + [(f"not {name}", "", why) for name, why in found["passed_over"].items()]


def short(count: int) -> str:
    """17,512,448 -> "17.5 M"."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return str(count)

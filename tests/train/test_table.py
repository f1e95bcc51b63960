"""docs/training.md lists every option of the configuration with its default, and says which are required."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from scumble.train.config import Data, ModelShape, Objective, Optimizer, Run

TABLES = {"model": ModelShape, "data": Data, "objective": Objective, "optimizer": Optimizer, "run": Run}


def documented() -> dict[str, str]:
    """Default column by "table.name". In `objective.t_min`, `t_max` the second name belongs to the same table."""
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    out: dict[str, str] = {}
    for line in text.splitlines():
        if not re.match(r"\| `\w+\.\w+`", line):
            continue
        names, _, default = (cell.strip() for cell in line.strip("|").split("|"))
        found = re.findall(r"`([\w.]+)`", names)
        table = found[0].partition(".")[0]
        defaults = default.split(", ") if "required" not in default else ["required"]
        for number, name in enumerate(found):
            out[f"{table}.{name.rpartition('.')[2]}"] = defaults[number if len(defaults) > 1 else 0]
    return out


def test_every_option_stands_in_the_table_with_its_default():
    table = documented()
    for name, kind in TABLES.items():
        for field in dataclasses.fields(kind):
            said = table.pop(f"{name}.{field.name}", None)
            if (name, field.name) == ("run", "init"):  # its own row: one of [model] and run.init is required
                continue
            assert said is not None, f"{name}.{field.name} is not in the table"
            if field.default is dataclasses.MISSING:
                assert "required" in said, f"{name}.{field.name}"
            else:
                value = {"true": True, "false": False}.get(said)
                assert (float(said) if value is None else value) == field.default, f"{name}.{field.name}"
    assert not table, "rows without an option"

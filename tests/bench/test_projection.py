"""The projection against the floors that others have worked out, and against the sheet in the documentation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scumble.bench.projection import FORMATS, MACHINES, project, project_release
from scumble.bench.shapes import RELEASE

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("form", "milliseconds"), [(0, 15.5), (1, 8.2), (2, 4.9)])
def test_floors_of_a_pass_on_an_h100(form: int, milliseconds: float) -> None:
    row = project(RELEASE, MACHINES[0], FORMATS[form], canvas=256, context=128, passes=16)
    assert row["machine"] == "H100 SXM"
    assert row["pass_seconds"] * 1e3 == pytest.approx(milliseconds, rel=0.1)


def test_what_does_not_fit_says_so() -> None:
    rows = {(row["machine"], row["format"]): row for row in project_release()["rows"]}
    assert len(rows) == len(MACHINES) * len(FORMATS)
    assert not rows["RTX 5090", "bf16"]["fits"]
    assert rows["H100 SXM", "bf16"]["fits"]
    assert rows["RTX 5090", "4-bit experts"]["weight_bytes"] < 18e9


def test_a_pass_is_the_sum_of_its_stages_and_more_bandwidth_never_hurts() -> None:
    rows = {(row["machine"], row["format"]): row for row in project_release()["rows"]}
    for row in rows.values():
        assert sum(row["stages_seconds"].values()) == pytest.approx(row["pass_seconds"])
    for form in FORMATS:
        assert rows["H200 SXM", form.name]["pass_seconds"] < rows["H100 SXM", form.name]["pass_seconds"]


def test_fewer_passes_are_more_tokens() -> None:
    few, many = (project_release(passes=passes)["rows"][0]["tokens_per_second"] for passes in (8, 16))
    assert 1.8 < few / many < 2.0  # not twice: the commit costs the same


def test_the_documentation_holds_the_sheet_that_the_command_prints() -> None:
    child = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "project.py"], capture_output=True, text=True, check=True
    )
    assert child.stdout.strip() in (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")

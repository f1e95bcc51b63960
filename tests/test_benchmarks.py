"""Benchmarks are typed in a clone, often on a machine where nothing is installed: each runs the package beside it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PROGRAMS = sorted(path for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


def imported(program: Path) -> list[str]:
    """Modules that a program imports, in order."""
    names = []
    for node in ast.parse(program.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return names


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_the_clone_is_found_before_anything_of_it_is_imported(program: Path) -> None:
    names = imported(program)
    ours = [name for name in names if name.split(".")[0] == "scumble" or (BENCHMARKS / f"{name}.py").exists()]
    assert ours[0] == "clone"


def test_another_package_of_the_name_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "scumble.py").write_text("raise RuntimeError('not the clone')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, BENCHMARKS / "project.py"], env=environment, check=True, capture_output=True)

"""The documentation is true in what a machine can check."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from scumble.train.read_config import read_train_config

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:\s]+)[^):]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_reference_is_what_the_code_says():
    command = [sys.executable, str(ROOT / "docs" / "make_reference.py"), "--check"]
    assert subprocess.run(command, capture_output=True).returncode == 0, "run: python docs/make_reference.py"
    assert "|---|---|\n\n" not in (ROOT / "docs" / "reference.md").read_text(), "a command without options is a group"


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.toml")), ids=lambda path: path.name)
def test_every_shipped_training_plan_is_valid(path):  # those of history/ are records of older versions
    read_train_config(path)

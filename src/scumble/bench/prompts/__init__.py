"""Prompts for adaptive runs: beginnings of Python files, written for this benchmark and used for nothing else."""

from __future__ import annotations

from importlib import resources

SEPARATOR = "=====\n"


def python_prompts() -> list[str]:
    text = resources.files(__name__).joinpath("python.txt").read_text(encoding="utf-8")
    return [part.removesuffix("\n") for part in text.split(SEPARATOR)]

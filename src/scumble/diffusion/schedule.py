"""Temperature over the passes of a canvas."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearTemperature:
    """From t_max (almost; first pass) down towards t_min: t_min + (t_max - t_min) · remaining / N.

    remaining runs N, N-1, … 1, so the first pass has exactly t_max and no pass has exactly t_min (unless they agree).
    """

    t_min: float
    t_max: float
    passes: int

    def __call__(self, pass_index: int) -> float:
        remaining = self.passes - pass_index  # N … 1
        return self.t_min + (self.t_max - self.t_min) * (remaining / self.passes)

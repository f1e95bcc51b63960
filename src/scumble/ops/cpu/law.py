"""structure/law.py: solve, by the native kernel (src/law.cpp): the same numbers, much sooner."""

from __future__ import annotations

import ctypes

import numpy as np
import torch

from scumble.structure.graph import Window
from scumble.structure.law import Masses, Solution


def solve(lib: ctypes.CDLL, window: Window, masses: Masses, uniforms: np.ndarray | None) -> Solution:
    graph, (n, classes) = window.graph, masses.mass.shape
    live, begins = window.live
    real = [np.ascontiguousarray(a, np.float64) for a in (masses.mass, masses.entropy, masses.best)]
    drawn_from = None if uniforms is None else np.ascontiguousarray(uniforms, np.float64)
    log_probability, entropies, rest = np.zeros(1), np.zeros(n), np.zeros(n)
    drawn, likely = np.zeros(n, np.int64), np.zeros(n, np.int64)
    lib.scumble_law(
        *(a.ctypes.data for a in (graph.target, graph.label, graph.first, graph.members, graph.begin)),
        *(a.ctypes.data for a in (live, begins, window.ends, *real)),
        None if drawn_from is None else drawn_from.ctypes.data,
        *(a.ctypes.data for a in (log_probability, entropies, drawn, rest, likely)),
        n, graph.states, classes, graph.labels, window.start, torch.get_num_threads(),
    )  # fmt: skip
    return Solution(float(log_probability[0]), entropies, likely, drawn, rest)

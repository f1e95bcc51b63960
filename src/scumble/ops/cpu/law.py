"""structure/law.py: solve, by the native kernel (src/law.cpp): the same numbers, much sooner."""

from __future__ import annotations

import ctypes

import numpy as np

from scumble.structure.law import Graph, Masses, Solution


def solve(
    lib: ctypes.CDLL, graph: Graph, masses: Masses, start: int, room: int, uniforms: np.ndarray | None
) -> Solution:
    n, classes = masses.mass.shape
    whole = [
        np.ascontiguousarray(a, np.int64) for a in (graph.target, graph.label, graph.first, graph.members, graph.begin)
    ]
    real = [np.ascontiguousarray(a, np.float64) for a in (masses.mass, masses.entropy, masses.best)]
    reachable = np.isfinite(graph.finals(room)).astype(np.float64)
    drawn_from = None if uniforms is None else np.ascontiguousarray(uniforms, np.float64)
    log_probability, entropies, rest = np.zeros(1), np.zeros(n), np.zeros(n)
    drawn, likely = np.zeros(n, np.int64), np.zeros(n, np.int64)
    lib.scumble_law(
        *(a.ctypes.data for a in (*whole, *real, reachable)),
        None if drawn_from is None else drawn_from.ctypes.data,
        *(a.ctypes.data for a in (log_probability, entropies, drawn, rest, likely)),
        n, graph.states, classes, graph.labels, start,
    )  # fmt: skip
    return Solution(float(log_probability[0]), entropies, likely, drawn, rest)

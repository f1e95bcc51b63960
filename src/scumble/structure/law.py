"""The law of a canvas under a structure: independent positions, given that the text is valid so far and able to end.

The denoiser gives each position i its own distribution p_i over ids. The product of them, conditioned on the event

    "the ids up to the first end id are a text of the language; or there is no end id yet, and the state that the ids
     lead to can end within the tokens that are left behind this canvas" (Window.ends: the states that can)

is the law that a constrained canvas is drawn from. It is exact over the whole vocabulary, because tokens of one class
lead to the same states: only class masses enter the sums. With w_i(c) = log p_i(c) and edges s -c-> t of the automaton,

    b_L(s) = 0 if ends(s) else -∞                     b_i(END) = 0 for every i: what stands behind the end is free
    b_i(s) = log Σ_{s -c-> t} exp(w_i(c) + b_{i+1}(t))                   (log-sum of all ways on)
    P_i(s → t, c) = exp(w_i(c) + b_{i+1}(t) - b_i(s))                    (the chain to draw from, forwards)

With max in place of Σ, and the best token of each class in place of its mass, the same recursion gives the most
probable canvas (Viterbi). Sums are in float64, in a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scumble.structure.graph import FINISHED, Graph, Window

_NONE = -np.inf


@dataclass(frozen=True)
class Masses:
    """What the vocabulary operator says of n positions and C classes of ids, each [n, C] float64.

    mass: log of a class's probability, -inf for none. entropy: nats, of the ids inside a class. best: log-probability
    of the most probable id. Class 0, to which no text leads, counts where any id may stand: behind the end.
    """

    mass: np.ndarray
    entropy: np.ndarray
    best: np.ndarray


@dataclass(frozen=True)
class Chain:
    """The law of one canvas, ready to draw from.

    weights [n, labels]: log masses of the class sets. ahead [n + 1, S]: b. steps [n, P]: P_i(pair | its source).
    """

    graph: Graph
    masses: Masses
    weights: np.ndarray
    ahead: np.ndarray
    steps: np.ndarray
    start: int

    @property
    def log_probability(self) -> float:
        """Of the event that is conditioned on; -inf where no valid canvas has any probability."""
        return float(self.ahead[0, self.start])

    def draw(self, uniforms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One path: the class at each position [n] (0 behind the end), and what is left of each uniform [n].

        A uniform chooses the next state, what is left of it the class, and what is left of that the id in the class.
        """
        graph = self.graph
        classes, rest = np.zeros(len(uniforms), np.int64), np.zeros(len(uniforms))
        state = self.start
        for i, uniform in enumerate(uniforms):
            if state == FINISHED:
                break
            pairs = slice(graph.first[state], graph.first[state + 1])
            pair, left = _choose(self.steps[i, pairs], float(uniform))
            pair += int(pairs.start)
            label = graph.label[pair]
            members = graph.members[graph.begin[label] : graph.begin[label + 1]]
            place, rest[i] = _choose(np.exp(self.masses.mass[i, members] - self.weights[i, label]), left)
            classes[i], state = members[place], graph.target[pair]
        return classes, rest

    def entropies(self) -> np.ndarray:
        """Of each position's id under the law [n], nats; behind the end it has its own distribution."""
        graph, masses = self.graph, self.masses
        at = np.zeros(graph.states)
        at[self.start] = 1.0
        found = np.empty(len(self.steps))
        owner = np.repeat(np.arange(graph.labels), np.diff(graph.begin))
        for i, steps in enumerate(self.steps):
            flow = at[graph.source] * steps
            by_label = np.bincount(graph.label, weights=flow, minlength=graph.labels)
            with np.errstate(invalid="ignore"):
                share = np.exp(masses.mass[i, graph.members] - self.weights[i, owner])
            share[np.isnan(share)] = 0.0
            by_class = np.bincount(graph.members, weights=by_label[owner] * share, minlength=masses.mass.shape[1])
            behind = at[FINISHED]
            at = np.bincount(graph.target, weights=flow, minlength=graph.states)
            at[FINISHED] += behind
            by_class += behind * np.exp(masses.mass[i])
            inside = np.where(by_class > 0, by_class * masses.entropy[i], 0.0).sum()
            found[i] = _plogp(by_class) + inside
        return np.maximum(found, 0.0)


def chain(window: Window, masses: Masses) -> Chain:
    """The law of a canvas."""
    graph = window.graph
    weights = graph.sums(masses.mass)
    n = len(weights)
    ahead = np.full((n + 1, graph.states), _NONE)
    ahead[n, window.ends] = 0.0
    steps = np.zeros((n, len(graph.source)))
    lengths = np.diff(graph.first)
    live = np.flatnonzero(lengths)
    heads = graph.first[live]
    for i in range(n - 1, -1, -1):
        ways = weights[i, graph.label] + ahead[i + 1, graph.target]
        peak = np.maximum.reduceat(ways, heads)
        base = np.repeat(np.where(np.isneginf(peak), 0.0, peak), lengths[live])
        shares = np.exp(ways - base)
        total = np.add.reduceat(shares, heads)
        with np.errstate(divide="ignore"):
            ahead[i, live] = peak + np.log(np.where(np.isneginf(peak), 1.0, total))
        steps[i] = shares / np.repeat(np.where(total > 0, total, 1.0), lengths[live])
        ahead[i, FINISHED] = 0.0
    return Chain(graph, masses, weights, ahead, steps, window.start)


def most_probable(window: Window, masses: Masses) -> tuple[np.ndarray, float]:
    """Viterbi: the class at each position [n] (0 behind the end) of the most probable valid canvas, and the log of its
    probability. Each class stands for its best id. Of equals the first pair wins, in order of states.
    """
    graph = window.graph
    peaks = graph.peaks(masses.best)
    n = len(peaks)
    lengths = np.diff(graph.first)
    live = np.flatnonzero(lengths)
    heads = graph.first[live]
    ahead = np.full((n + 1, graph.states), _NONE)
    ahead[n, window.ends] = 0.0
    for i in range(n - 1, -1, -1):
        ahead[i, live] = np.maximum.reduceat(peaks[i, graph.label] + ahead[i + 1, graph.target], heads)
        ahead[i, FINISHED] = 0.0
    classes, state = np.zeros(n, np.int64), window.start
    for i in range(n):
        if state == FINISHED:
            break
        pairs = slice(graph.first[state], graph.first[state + 1])
        pair = int(np.argmax(peaks[i, graph.label[pairs]] + ahead[i + 1, graph.target[pairs]])) + int(pairs.start)
        members = graph.members[graph.begin[graph.label[pair]] : graph.begin[graph.label[pair] + 1]]
        classes[i] = members[int(np.argmax(masses.best[i, members]))]
        state = graph.target[pair]
    return classes, float(ahead[0, window.start])


@dataclass(frozen=True)
class Solution:
    """What a canvas's law says: the log of the condition's probability (up to what masses have in common), entropies
    [n], the classes of the most probable canvas [n], and those of a draw with what is left of its uniforms [n]."""

    log_probability: float
    entropies: np.ndarray
    likely: np.ndarray
    drawn: np.ndarray
    rest: np.ndarray


def solve(window: Window, masses: Masses, uniforms: np.ndarray | None) -> Solution:
    """All of it. uniforms [n]; None: no draw, zeros."""
    law, n = chain(window, masses), window.length
    if not np.isfinite(law.log_probability):
        nothing = np.zeros(n, np.int64)
        return Solution(-np.inf, np.zeros(n), nothing, nothing, np.zeros(n))
    likely, _ = most_probable(window, masses)
    drawn, rest = (np.zeros(n, np.int64), np.zeros(n)) if uniforms is None else law.draw(uniforms)
    return Solution(law.log_probability, law.entropies(), likely, drawn, rest)


def _choose(shares: np.ndarray, uniform: float) -> tuple[int, float]:
    """Inverse CDF of shares that sum to about 1 -> the index, and the uniform's place inside that share, in [0, 1)."""
    running = np.cumsum(shares)
    target = uniform * running[-1]
    index = int(np.searchsorted(running, target, side="right"))
    if index >= len(shares) or shares[index] == 0:  # rounding at the far end
        index = int(np.flatnonzero(shares)[-1])
    inside = (target - (running[index] - shares[index])) / shares[index]
    return index, float(min(max(inside, 0.0), np.nextafter(1.0, 0.0)))


def _plogp(probabilities: np.ndarray) -> float:
    kept = probabilities[probabilities > 0]
    return float(-(kept * np.log(kept)).sum())

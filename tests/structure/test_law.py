"""The law of a canvas against plain enumeration of every canvas there is."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from scumble.structure import Regex, StructureError, Vocabulary, compiled
from scumble.structure.automaton import DEAD, START, Budget
from scumble.structure.classes import Tokens, classify
from scumble.structure.graph import Graph, Window
from scumble.structure.law import Masses, chain, most_probable

TOKENS = [b"a", b"b", b"ab", b"ba", b"c", None, b"bc", b"aa"]
END = 5
CASES = [("(a|b)*c?", 4, 0), ("a{0,3}b", 4, 2), ("(ab|c)+", 5, 1), ("a*b*c", 3, 1), ("abc|c", 2, 0)]


def tokens_of(pattern: str, tokens: list[bytes | None] = TOKENS) -> Tokens:
    return classify(Regex(pattern).automaton(Budget()), Vocabulary(tokens), (END,), Budget())


def window_of(tokens: Tokens, length: int, room: int) -> Window:
    """A canvas at the beginning of a text, with `room` tokens left behind it."""
    graph = Graph.of(tokens)
    return Window(graph, START, length, graph.within(room))


def masses_of(logits: np.ndarray, tokens: Tokens) -> tuple[Masses, np.ndarray, np.ndarray]:
    """What the vocabulary operator would say, log-probabilities [n, V], and the best id of each class."""
    logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    n, classes = len(logs), tokens.classes
    mass, best = np.full((n, classes), -np.inf), np.full((n, classes), -np.inf)
    entropy, best_id = np.zeros((n, classes)), np.zeros((n, classes), np.int64)
    for c in np.unique(tokens.of_token):
        ids = np.flatnonzero(tokens.of_token == c)
        mass[:, c] = np.logaddexp.reduce(logs[:, ids], axis=1)
        share = np.exp(logs[:, ids] - mass[:, [c]])
        entropy[:, c] = -np.where(share > 0, share * np.log(np.maximum(share, 1e-300)), 0).sum(1)
        best[:, c], best_id[:, c] = logs[:, ids].max(1), ids[logs[:, ids].argmax(1)]
    return Masses(mass, entropy, best), logs, best_id


def canvases(pattern: str, tokens: Tokens, logs: np.ndarray, room: int) -> dict[tuple[int, ...], float]:
    """Every valid canvas, cut behind its end id, with its probability; not normalised."""
    machine, found = Regex(pattern).automaton(Budget()), {}
    for ids in itertools.product(range(len(TOKENS)), repeat=len(logs)):
        cut = ids[: ids.index(END)] if END in ids else ids
        text = b"".join(TOKENS[id] or b"\xff" for id in cut)
        valid = machine.accepts(text) if END in ids else machine.walk(text) != DEAD and shortest(tokens, cut) <= room
        if valid:
            kept = (*cut, END) if END in ids else cut
            found[kept] = float(np.exp(sum(logs[i, id] for i, id in enumerate(kept))))
    return found


def shortest(tokens: Tokens, ids: tuple[int, ...]) -> int:
    state = START
    for id in ids:
        state = tokens.after(state, id)
    return int(tokens.distance[state])


@pytest.mark.parametrize(("pattern", "length", "room"), CASES)
def test_probability_entropies_and_best_canvas(pattern: str, length: int, room: int) -> None:
    tokens = tokens_of(pattern)
    masses, logs, best_id = masses_of(np.random.default_rng(3).normal(size=(length, len(TOKENS))) * 1.5, tokens)
    every = canvases(pattern, tokens, logs, room)
    total = sum(every.values())
    law = chain(window_of(tokens, length, room), masses)
    assert law.log_probability == pytest.approx(np.log(total), abs=1e-12)

    for i, entropy in enumerate(law.entropies()):
        shares: Counter = Counter()
        for ids, probability in every.items():
            for id in [ids[i]] if i < len(ids) else range(len(TOKENS)):  # behind the end any may stand
                shares[id] += probability / total * (1.0 if i < len(ids) else np.exp(logs[i, id]))
        assert entropy == pytest.approx(-sum(p * np.log(p) for p in shares.values() if p), abs=1e-10)

    classes, log_probability = most_probable(window_of(tokens, length, room), masses)
    best = max(every, key=lambda ids: every[ids])
    assert log_probability == pytest.approx(np.log(every[best]), abs=1e-12)
    assert tuple(best_id[i, c] for i, c in enumerate(classes[: len(best)])) == best
    assert not classes[len(best) :].any()


@pytest.mark.parametrize(("pattern", "length", "room"), CASES)
def test_draws_follow_the_law(pattern: str, length: int, room: int) -> None:
    tokens = tokens_of(pattern)
    rng = np.random.default_rng(11)
    masses, logs, _ = masses_of(rng.normal(size=(length, len(TOKENS))), tokens)
    every = canvases(pattern, tokens, logs, room)
    law, draws = chain(window_of(tokens, length, room), masses), 6000
    counts = Counter(draw(law, tokens, logs, rng.random(length)) for _ in range(draws))
    assert counts.keys() <= every.keys()
    total = sum(every.values())
    frequent = [ids for ids in every if every[ids] / total * draws >= 5]
    seen = [counts[ids] for ids in frequent]
    expected = [every[ids] / total * draws for ids in frequent]
    if draws - sum(expected) >= 5:
        seen, expected = [*seen, draws - sum(seen)], [*expected, draws - sum(expected)]
    if len(seen) > 1:
        assert chisquare(seen, np.array(expected) * sum(seen) / sum(expected)).pvalue > 1e-4


def draw(law, tokens: Tokens, logs: np.ndarray, uniforms: np.ndarray) -> tuple[int, ...]:
    classes, rest = law.draw(uniforms)
    ids = []
    for i, c in enumerate(classes):
        if c == 0:
            break
        members = np.flatnonzero(tokens.of_token == c)
        running = np.cumsum(np.exp(logs[i, members]))
        ids.append(int(members[np.searchsorted(running, rest[i] * running[-1], side="right")]))
    return tuple(ids)


def test_improbable_by_a_thousand_nats_is_still_valid() -> None:
    """A cold temperature leaves classes with masses that no float could hold; the law stays exact."""
    tokens = tokens_of("a{3}b")
    logits = np.zeros((5, len(TOKENS)))
    logits[:, 4] = 5000.0  # the model insists on "c", which has no place
    masses, _, _ = masses_of(logits, tokens)
    law = chain(window_of(tokens, 5, 0), masses)
    for uniforms in np.random.default_rng(5).random((20, 5)):
        classes, _ = law.draw(uniforms)
        state = START
        for c in classes[: list(classes).index(1)]:
            state = int(tokens.step[state, c])
        assert tokens.ends[state]


@given(st.sampled_from(["(a|b)*c?", "a{0,3}b", "(ab|c)+", "(aa|b){2}"]))
def test_classes_are_what_walking_says(pattern: str) -> None:
    machine, tokens = Regex(pattern).automaton(Budget()), tokens_of(pattern)
    for state in range(1, machine.states):
        for id, data in enumerate(TOKENS):
            expected = machine.walk(data, state) if data else DEAD
            assert tokens.after(state, id) == expected
    assert len(np.unique(tokens.step[:, 2:], axis=1).T) == tokens.classes - 2  # no two classes alike


def test_fewest_tokens_to_the_end() -> None:
    assert tokens_of("abba").fewest == 3  # ab, ba and the end
    assert tokens_of("aaaab").fewest == 4


def test_a_vocabulary_that_cannot_write_the_language() -> None:
    with pytest.raises(StructureError, match="no tokens"):
        tokens_of("x+")


def test_states_without_an_ending_are_closed() -> None:
    """After "c" only "d" could follow, which no token writes: so "c" is not taken."""
    tokens = tokens_of("a|cd")
    assert tokens.after(START, 4) == DEAD


def test_compiled_languages_are_kept(tmp_path: Path) -> None:
    vocabulary, language = Vocabulary(TOKENS), Regex("(ab)*c{2,5}")
    first = compiled(language, vocabulary, (END,), folder=tmp_path)
    assert compiled(language, vocabulary, (END,), folder=tmp_path) is first
    (file,) = tmp_path.iterdir()
    from scumble.structure import compiled as module_function  # the memory is emptied as a new process would find it

    store = module_function.__globals__["_memory"]
    store.clear()
    again = compiled(language, vocabulary, (END,), folder=tmp_path)
    assert np.array_equal(again.tokens.step, first.tokens.step)
    file.write_bytes(file.read_bytes()[:100])  # cut short: it is made anew
    store.clear()
    assert np.array_equal(compiled(language, vocabulary, (END,), folder=tmp_path).tokens.step, first.tokens.step)
    assert len(list(tmp_path.iterdir())) == 1

"""Scores of single answers, against the plainest definitions."""

import functools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scumble.evaluate.scoring import edit_similarity, error_reduction, exact_match, levenshtein, parses

SHORT = st.text("ab \n", max_size=7)


@functools.cache
def distance(a: str, b: str) -> int:
    """Levenshtein's distance as it is defined."""
    if not a or not b:
        return len(a) + len(b)
    replaced = distance(a[1:], b[1:]) + (a[0] != b[0])
    return min(replaced, distance(a[1:], b) + 1, distance(a, b[1:]) + 1)


@given(SHORT, SHORT)
def test_levenshtein_is_what_its_definition_says(a, b):
    assert levenshtein(a, b) == distance(a, b)


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_levenshtein_is_a_distance(a, b, c):
    assert (levenshtein(a, b) == 0) == (a == b)
    assert levenshtein(a, b) == levenshtein(b, a)
    assert levenshtein(a, c) <= levenshtein(a, b) + levenshtein(b, c)


@given(SHORT, SHORT)
def test_similarity_and_exact_match_overlook_white_space_at_both_ends(found, wanted):
    similarity = edit_similarity(found, wanted)
    assert 0 <= similarity <= 1
    assert (similarity == 1) == exact_match(found, wanted) == (found.strip() == wanted.strip())
    assert edit_similarity(f" \n{found}\t", wanted) == similarity == edit_similarity(wanted, found)


@pytest.mark.parametrize(
    ("found", "score"),
    [
        ("return x", 1),
        ("  return x\n", 1),
        ("return y", 0.5),
        ("retrun x", 0),
        ("retrun xy", -0.5),
        ("", -1),
        ("?" * 99, -1),
    ],
)
def test_error_reduction(found, score):
    """The damaged "retrun x" is two letters away from "return x"."""
    assert error_reduction(found, "retrun x", "return x") == score


@given(SHORT, SHORT, SHORT)
def test_error_reduction_is_positive_just_where_an_answer_is_nearer(found, damaged, wanted):
    assume(damaged.strip() != wanted.strip())
    score = error_reduction(found, damaged, wanted)
    gained = levenshtein(damaged.strip(), wanted.strip()) - levenshtein(found.strip(), wanted.strip())
    assert -1 <= score <= 1
    assert (score > 0, score < 0) == (gained > 0, gained < 0)
    assert (score == 1) == exact_match(found, wanted)
    assert error_reduction(damaged, damaged, wanted) == 0


@given(st.one_of(st.text(max_size=40), st.text("()[]{}:\n \\'\"#-=def lambda\0\ud800", max_size=40)))
def test_parses_never_raises(source):
    assert parses(source) in (True, False)


@pytest.mark.parametrize(
    ("source", "verdict"),
    [
        ("", True),
        ("def f():\n    return 1\n", True),
        ("def f():", False),
        ("def f():\nreturn 1", False),
        ("'\\d'", True),  # warns, but is Python
        ("\0", False),
        ("x = '\ud800'", False),
        ("-" * 100_000 + "1", False),
        ("(" * 1000 + ")" * 1000, False),
    ],
)
def test_parses(source, verdict):
    assert parses(source) is verdict

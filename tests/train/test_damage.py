"""Damage for the repair task: small, reproducible, and of the kinds that hands make."""

import random

from hypothesis import given
from hypothesis import strategies as st

from scumble.evaluate.scoring import levenshtein
from scumble.train.damage import damage

CODE = "if values[0] == limit:\n        return compute(values, limit) + 1"


@given(st.integers(0, 2**32))
def test_damage_is_small_and_the_same_for_the_same_generator(seed):
    broken = damage(CODE, random.Random(seed))
    assert broken == damage(CODE, random.Random(seed))
    assert levenshtein(broken, CODE) <= 3 * len("compute"), "at most three slips, the longest a lost word"


def test_real_code_is_nearly_always_changed_and_in_many_ways():
    broken = [damage(CODE, random.Random(seed)) for seed in range(300)]
    assert sum(text != CODE for text in broken) >= 295  # two slips may undo each other
    assert len(set(broken)) > 150


@given(st.text(max_size=30), st.integers(0, 2**32))
def test_any_text_can_be_asked_for(text, seed):
    assert isinstance(damage(text, random.Random(seed)), str)


def test_a_text_without_a_place_to_slip_stays_as_it_is():
    assert damage("", random.Random(0)) == ""
    assert damage("x", random.Random(0)) == "x"

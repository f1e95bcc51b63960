"""The native kernel of a canvas's law against structure/law.py."""

import numpy as np
import pytest
import torch

from scumble.ops.choose import choose
from scumble.structure.law import Masses, solve
from structure.test_law import CASES, TOKENS, masses_of, tokens_of, window_of

OPS = choose(torch.device("cpu"), torch.bfloat16).ops


@pytest.mark.skipif(OPS.name != "cpu", reason="this machine has no native kernels")
@pytest.mark.parametrize("scale", [1.0, 3000.0])
@pytest.mark.parametrize(("pattern", "length", "room"), CASES)
def test_same_as_numpy(pattern: str, length: int, room: int, scale: float) -> None:
    """scale 3000: probabilities far below what a double holds."""
    tokens, rng = tokens_of(pattern), np.random.default_rng(2)
    window = window_of(tokens, length, room)
    for _ in range(20):
        masses, _, _ = masses_of(rng.normal(size=(length, len(TOKENS))) * scale, tokens)
        uniforms = rng.random(length)
        mine = OPS.canvas_law(window, masses, uniforms)
        plain = solve(window, masses, uniforms)
        assert mine.log_probability == pytest.approx(plain.log_probability, rel=1e-12, abs=1e-10)
        np.testing.assert_allclose(mine.entropies, plain.entropies, atol=1e-9)
        np.testing.assert_array_equal(mine.likely, plain.likely)
        np.testing.assert_array_equal(mine.drawn, plain.drawn)
        np.testing.assert_allclose(mine.rest, plain.rest, atol=1e-5)


@pytest.mark.skipif(OPS.name != "cpu", reason="this machine has no native kernels")
def test_an_impossible_canvas_has_no_probability() -> None:
    tokens = tokens_of("abba")
    masses, _, _ = masses_of(np.zeros((2, len(TOKENS))), tokens)
    nothing = Masses(np.full_like(masses.mass, -np.inf), masses.entropy, masses.best)
    assert OPS.canvas_law(window_of(tokens, 2, 0), nothing, None).log_probability == -np.inf

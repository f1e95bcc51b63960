"""Statistics by classes of ids against plain sums over all logits: tiled, and by the native kernel."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble.ops import VocabQuery, softcap
from scumble.ops.choose import choose
from scumble.ops.classes import ClassSweep, TokenClasses
from scumble.ops.tiled import vocab_head

CAP = 30.0


def check(sweep: ClassSweep, z: np.ndarray, of_token: np.ndarray, uniforms: np.ndarray) -> None:
    """z [n, V] float64. Masses are sums in float32: 1e-5 of each."""
    rows = np.arange(len(z))
    for kind in range(1, sweep.classes.count):
        ids, chosen = np.flatnonzero(of_token == kind), np.full(len(z), kind)
        if not len(ids):
            assert np.isneginf(sweep.mass[:, kind]).all()
            continue
        mass = np.logaddexp.reduce(z[:, ids], axis=1)
        share = np.exp(z[:, ids] - mass[:, None])
        plogp = np.where(share > 0, share * np.log(np.maximum(share, 1e-300)), 0)
        np.testing.assert_allclose(sweep.mass[:, kind], mass, atol=2e-5, rtol=1e-6)
        np.testing.assert_allclose(sweep.entropy[:, kind], -plogp.sum(1), atol=1e-4)
        np.testing.assert_allclose(sweep.best[:, kind], z[:, ids].max(1), rtol=1e-6)
        assert (sweep.best_ids(rows, chosen) == ids[z[:, ids].argmax(1)]).all()
        drawn = sweep.draw(rows, chosen, uniforms)
        running = np.cumsum(share, axis=1)
        for row, id in enumerate(drawn):
            place = int(np.searchsorted(ids, id))
            assert ids[place] == id
            before = running[row, place - 1] if place else 0.0
            assert before - 1e-5 <= uniforms[row] <= running[row, place] + 1e-5


@settings(max_examples=40)
@given(
    st.integers(1, 6),
    st.integers(2, 150),
    st.integers(1, 9),
    st.integers(1, 170),
    st.floats(0.05, 5),
    st.integers(0, 999),
)
def test_tiled(n: int, vocab: int, count: int, tile: int, temperature: float, seed: int) -> None:
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    hidden = torch.randint(-8, 9, (n, 8), generator=generator) / 4
    embedding = torch.randint(-8, 9, (vocab, 8), generator=generator) / 8 + torch.arange(vocab)[:, None] / 2**10
    of_token = rng.integers(0, count + 1, vocab)
    query = VocabQuery(temperature, classes=TokenClasses(of_token, count + 1))
    result = vocab_head(hidden, embedding, query, cap=CAP, tile=tile)
    assert result.classes is not None
    z = (softcap(hidden @ embedding.T, CAP) / temperature).double().numpy()
    check(result.classes, z, of_token, rng.random(n))


def test_native_kernel() -> None:
    ops = choose(torch.device("cpu"), torch.bfloat16).ops
    if ops.name != "cpu":
        pytest.skip(f"this machine has no native kernels, {ops.name} serves")
    generator, rng = torch.Generator().manual_seed(1), np.random.default_rng(1)
    n, vocab = 24, 5000
    hidden = torch.randn(n, 64, generator=generator).bfloat16()
    embedding = (torch.randn(vocab, 64, generator=generator) * 0.6).bfloat16()
    of_token = np.where(rng.random(vocab) < 0.5, 3, rng.integers(0, 40, vocab))
    query = VocabQuery(0.5, want_soft=True, classes=TokenClasses(of_token, 40))
    result = ops.vocab_head(hidden, embedding, query, cap=CAP)
    assert result.classes is not None
    z = softcap((hidden @ embedding.T).float(), CAP) / 0.5
    check(result.classes, z.double().numpy(), of_token, rng.random(n))


def test_far_apart_classes_keep_their_mass() -> None:
    """At a temperature of 1e-3 two classes lie 20,000 nats apart; neither is lost."""
    z = torch.tensor([[20.0, -20.0, -19.999]]) / 1e-3
    sweep = ClassSweep(TokenClasses(np.array([1, 2, 2]), 3), 1, 2)
    sweep.add(z[:, :2])
    sweep.add(z[:, 2:])
    sweep.finish(lambda rows, first: z[:, first : first + 2])
    expected = np.logaddexp(*z[0, 1:].double().numpy())
    np.testing.assert_allclose(sweep.mass[0, 1:], [20000.0, expected], rtol=1e-6)

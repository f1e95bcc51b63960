"""Statistics by classes of ids against plain sums over all logits: tiled, and by the native kernel."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble.formats.int8_embedding import Int8Embedding
from scumble.ops import REFERENCE, Ops, VocabQuery, softcap
from scumble.ops.choose import choose
from scumble.ops.classes import Classified, ClassStatistics, ClassSweep, TokenClasses
from scumble.ops.tiled import vocab_head

CAP = 30.0


def check(sweep: ClassStatistics, z: np.ndarray, of_token: np.ndarray, uniforms: np.ndarray, close: float = 0) -> None:
    """z [n, V] float64, whose single numbers differ by `close`, and 1e-6 of each, at most. Masses are sums in float32:
    1e-5 of each."""
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
        np.testing.assert_allclose(sweep.best[:, kind], z[:, ids].max(1), rtol=1e-6, atol=close)
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
    query = VocabQuery(temperature, classes=[Classified(TokenClasses(of_token, count + 1), 0, n)])
    result = vocab_head(hidden, embedding, query, cap=CAP, tile=tile)
    z = (softcap(hidden @ embedding.T, CAP) / temperature).double().numpy()
    check(result.classes[0], z, of_token, rng.random(n))


def native() -> Ops:
    ops = choose(torch.device("cpu"), torch.bfloat16).ops
    if ops.name != "cpu":
        pytest.skip(f"this machine has no native kernels, {ops.name} serves")
    return ops


def some(n: int, vocab: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray, np.random.Generator]:
    """hidden, embedding, classes of which one has half of all ids, random numbers."""
    generator, rng = torch.Generator().manual_seed(1), np.random.default_rng(1)
    hidden = torch.randn(n, 64, generator=generator).bfloat16()
    embedding = (torch.randn(vocab, 64, generator=generator) * 0.6).bfloat16()
    return hidden, embedding, np.where(rng.random(vocab) < 0.5, 3, rng.integers(0, 40, vocab)), rng


@pytest.mark.parametrize("form", [None, "int8"])
def test_native_kernel(form: str | None) -> None:
    """In bfloat16 and with a head in int8, whose logits are what classes are then of."""
    ops = native()
    hidden, embedding, of_token, rng = some(24, 5000)
    head = Int8Embedding(embedding) if form else None
    query = VocabQuery(0.5, want_soft=True, classes=[Classified(TokenClasses(of_token, 40), 0, 24)])
    result = ops.vocab_head(hidden, embedding, query, cap=CAP, head=head)
    logits = hidden @ embedding.T if head is None else head(hidden)
    check(result.classes[0], (softcap(logits.float(), CAP) / 0.5).double().numpy(), of_token, rng.random(24))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_rows_with_classes_of_their_own_stand_beside_rows_without(backend: str) -> None:
    """Three canvases in one call: two with different classes, one of them under masks, and one without any. Each has
    what it has alone; ids that a mask forbids count nowhere."""
    ops = native() if backend == "cpu" else REFERENCE
    hidden, embedding, of_token, rng = some(30, 3000)
    other = rng.integers(0, 7, 3000)
    masks = torch.stack([torch.ones(3000, dtype=torch.bool), torch.rand(3000) < 0.3])
    masks[1, 500:2600] = False  # whole tiles
    mask = torch.tensor([0] * 20 + [1] * 10)
    asked = [Classified(TokenClasses(of_token, 40), 0, 8), Classified(TokenClasses(other, 7), 20, 30)]
    heat = torch.linspace(0.3, 1.5, 30)
    result = ops.vocab_head(hidden, embedding, VocabQuery(heat, masks, mask=mask, classes=asked), cap=CAP)
    z = softcap((hidden @ embedding.T).float(), CAP) / heat[:, None]
    z = z.double().masked_fill(~masks[mask], -np.inf).numpy()
    check(result.classes[0], z[:8], of_token, rng.random(8))
    check(result.classes[1], z[20:], np.where(masks[1], other, 0), rng.random(10))
    if ops.batch_invariant:
        query = VocabQuery(heat[20:], masks[1], classes=[Classified(TokenClasses(other, 7), 0, 10)])
        alone = ops.vocab_head(hidden[20:], embedding, query, cap=CAP)
        for name in ("mass", "entropy", "best", "best_id"):
            assert np.array_equal(getattr(alone.classes[0], name), getattr(result.classes[1], name)), name
        assert torch.equal(alone.logsumexp, result.logsumexp[20:])


def test_far_apart_classes_keep_their_mass() -> None:
    """At a temperature of 1e-3 two classes lie 20,000 nats apart; neither is lost."""
    z = torch.tensor([[20.0, -20.0, -19.999]]) / 1e-3
    sweep = ClassSweep(TokenClasses(np.array([1, 2, 2]), 3), 1, 2, lambda rows, first: z[:, first : first + 2])
    sweep.add(z[:, :2])
    sweep.add(z[:, 2:])
    sweep.finish()
    expected = np.logaddexp(*z[0, 1:].double().numpy())
    np.testing.assert_allclose(sweep.mass[0, 1:], [20000.0, expected], rtol=1e-6)

"""Noise is an address: known answers of Philox4x32-10, and what the three calls promise."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scumble.diffusion import SeededNoise
from scumble.diffusion.noise import Address, philox, round_keys

seeds = st.integers(0, 2**64 - 1)
indices = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123's kat_vectors, philox4x32 with 10 rounds
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_known_answers(counter, key, expected):
    words = torch.tensor([[int(word, 16)] for word in counter.split()])
    low, high = (torch.tensor([int(word, 16)]) for word in key.split())
    assert [f"{int(word):08x}" for word in philox(words, round_keys(low, high))[:, 0]] == expected.split()


def philox_plainly(counter: list[int], key: list[int]) -> list[int]:
    """Ten rounds in whole numbers without end."""
    (a, b, c, d), (low, high) = counter, key
    for _ in range(10):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = right >> 32 ^ b ^ low, right % 2**32, left >> 32 ^ d ^ high, left % 2**32
        low, high = (low + 0x9E3779B9) % 2**32, (high + 0xBB67AE85) % 2**32
    return [a, b, c, d]


@given(st.lists(indices, min_size=4, max_size=4), st.lists(indices, min_size=2, max_size=2))
def test_philox_in_64_bits_is_philox(counter, key):
    keys = round_keys(*torch.tensor(key)[:, None])
    assert philox(torch.tensor(counter)[:, None], keys)[:, 0].tolist() == philox_plainly(counter, key)


@given(st.lists(st.tuples(seeds, st.integers(0, 63), indices, st.integers(0, 9999)), min_size=1, max_size=5))
@settings(max_examples=30)
def test_the_noise_of_several_canvases_is_that_of_each(slots):
    address = Address.of(
        [SeededNoise(seed, candidate) for seed, candidate, _, _ in slots], [s[2] for s in slots], "cpu"
    )
    uniforms, ids = address.draw(torch.tensor([number for *_, number in slots]), 20, 1000)
    for place, (seed, candidate, canvas, number) in enumerate(slots):
        noise = SeededNoise(seed, candidate)
        assert torch.equal(uniforms[place], noise.uniform(canvas, number, 20))
        assert torch.equal(ids[place], noise.renoise(canvas, number, 20, 1000))


@given(seeds, st.integers(0, 2**31))
def test_first_uniforms_are_those_of_each_canvas(seed, first):
    noise = SeededNoise(seed)
    assert noise.first_uniforms(first, 5).tolist() == [float(noise.uniform(first + i, 0, 1)[0]) for i in range(5)]


@given(seeds, indices, indices, st.integers(0, 300), st.integers(0, 300))
@settings(deadline=None, max_examples=50)
def test_a_longer_canvas_has_the_same_noise_at_its_first_positions(seed, canvas, pass_index, short, more):
    noise, length = SeededNoise(seed), short + more
    assert torch.equal(noise.uniform(canvas, pass_index, length)[:short], noise.uniform(canvas, pass_index, short))
    assert torch.equal(noise.initial(canvas, length, 262_144)[:short], noise.initial(canvas, short, 262_144))
    long, brief = (noise.renoise(canvas, pass_index, n, 1000) for n in (length, short))
    assert torch.equal(long[:short], brief)


@given(seeds, indices, indices, st.integers(1, 2**24))
@settings(deadline=None, max_examples=50)
def test_ranges_and_types(seed, canvas, pass_index, vocab):
    noise = SeededNoise(seed)
    uniform = noise.uniform(canvas, pass_index, 64)
    assert uniform.dtype == torch.float64
    assert float(uniform.min()) >= 0
    assert float(uniform.max()) < 1
    for ids in (noise.initial(canvas, 64, vocab), noise.renoise(canvas, pass_index, 64, vocab)):
        assert ids.dtype == torch.int64
        assert int(ids.min()) >= 0
        assert int(ids.max()) < vocab


def test_the_largest_uniform_never_rounds_up_to_an_id_outside_the_vocabulary():
    largest = np.float64(1 - 2.0**-53)
    sizes = np.concatenate([np.arange(1, 5000), 2 ** np.arange(1, 31), 2 ** np.arange(2, 31) - 1, [262_144, 256_000]])
    assert ((largest * sizes).astype(np.int64) == sizes - 1).all()


def test_every_part_of_the_address_counts():
    """Another seed (low or high word), canvas, pass or purpose: other numbers, uncorrelated with the first."""
    n = 20_000
    streams = {
        "base": SeededNoise(7).uniform(0, 0, n),
        "seed": SeededNoise(8).uniform(0, 0, n),
        "seed's high word": SeededNoise(7 + 2**32).uniform(0, 0, n),
        "canvas": SeededNoise(7).uniform(1, 0, n),
        "pass": SeededNoise(7).uniform(0, 1, n),
        "purpose: renoise": SeededNoise(7).renoise(0, 0, n, 2**30).double(),
        "purpose: initial": SeededNoise(7).initial(0, n, 2**30).double(),
    }
    correlation = np.corrcoef(np.stack([stream.numpy() for stream in streams.values()]))
    off_diagonal = correlation[~np.eye(len(streams), dtype=bool)]
    assert np.abs(off_diagonal).max() < 5 / n**0.5  # five standard errors


def test_the_largest_seed_differs_from_its_neighbours():
    draws = {
        seed: tuple(SeededNoise(seed).uniform(0, 0, 4).tolist()) for seed in (0, 2**32, 2**63, 2**64 - 2, 2**64 - 1)
    }
    assert len(set(draws.values())) == len(draws)


@pytest.mark.parametrize("kind", ["uniform", "initial", "renoise"])
def test_numbers_are_uniform(kind):
    """Chi-square over 64 cells with 256,000 draws; the seed is fixed, so the test cannot flicker."""
    cells, noise = 64, SeededNoise(2026)
    draws = []
    for canvas in range(10):
        for pass_index in range(100):
            if kind == "uniform":
                draws.append((noise.uniform(canvas, pass_index, 256) * cells).long())
            elif kind == "initial":
                draws.append(noise.initial(canvas * 100 + pass_index, 256, cells))
            else:
                draws.append(noise.renoise(canvas, pass_index, 256, cells))
    counts = torch.bincount(torch.cat(draws), minlength=cells).numpy()
    assert stats.chisquare(counts).pvalue > 1e-3

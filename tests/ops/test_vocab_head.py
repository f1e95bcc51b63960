"""The tiled vocabulary operator against the plain one, and both against the law they have to follow.

Most tests draw hidden states and embeddings from multiples of 1/4 and 1/8: then every product is exact in float32
however a matrix library orders its sums, both operators see the same logits, and only the operators are compared.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from scumble.diffusion import SeededNoise
from scumble.ops import VocabQuery, VocabResult, softcap, vocab_head_reference
from scumble.ops.classes import Classified, TokenClasses
from scumble.ops.tiled import vocab_head

CAP = 30.0
LARGEST = 1 - 2.0**-53  # the largest uniform there is
# An entropy is log Σ w - Σ w·z / Σ w with w = 1 at the peak, summed in float64: relative 1e-5 holds down to entropies
# of about 1e-10; below, log(1 + w) loses digits of w against 1, which costs less than this absolute amount (in nats).
ENTROPY_FLOOR = 1e-15


def exact(n: int, vocab: int, size: int, spread: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """hidden [n, D], embedding [V, D] with exact products, uniforms [n]. spread: flat (1) to peaked (16) logits."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randint(-spread, spread + 1, (n, size), generator=generator) / 4
    embedding = torch.randint(-8, 9, (vocab, size), generator=generator) / 8
    uniforms = torch.rand(n, dtype=torch.float64, generator=generator)
    return hidden.to(dtype), embedding.to(dtype), uniforms


def cumulative(hidden: Tensor, embedding: Tensor, temperature: float, allowed: Tensor | None) -> Tensor:
    """Cumulative probabilities [n, V] in float64."""
    z = softcap((hidden @ embedding.T).float(), CAP) / temperature
    if allowed is not None:
        z = z.masked_fill(~allowed, float("-inf"))
    return torch.softmax(z.double(), -1).cumsum(-1)


def assert_same_samples(mine: Tensor, theirs: Tensor, cdf: Tensor, uniforms: Tensor) -> None:
    """Equal, except at proven rounding ties: every border between the two ids lies within 1e-6 of the uniform."""
    for row in (mine != theirs).nonzero()[:, 0].tolist():
        low, high = sorted((int(mine[row]), int(theirs[row])))
        assert bool(((cdf[row, low:high] - uniforms[row]).abs() < 1e-6).all()), "samples differ without a tie"


def assert_agree(mine: VocabResult, plain: VocabResult) -> None:
    torch.testing.assert_close(mine.logsumexp, plain.logsumexp, rtol=1e-5, atol=1e-6)  # atol: a sum near e^0
    torch.testing.assert_close(mine.entropy, plain.entropy, rtol=1e-5, atol=ENTROPY_FLOOR)
    assert torch.equal(mine.argmax, plain.argmax)


@st.composite
def cases(draw):
    n, vocab = draw(st.integers(1, 9)), draw(st.integers(2, 150))
    mask = draw(st.sampled_from(["none", "row", "shared", "whole tiles"]))
    tile = draw(st.integers(1, 170))  # dividing V or not, larger than V too
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    allowed = None
    if mask != "none":
        shape = (vocab,) if mask == "shared" else (n, vocab)
        allowed = torch.rand(shape, generator=generator) < 0.4
        if mask == "whole tiles":
            allowed[:, : min(tile, vocab - 1)] = False
        allowed[..., -1] = True  # at least one id has to be allowed
    return {
        "inputs": (n, vocab, draw(st.integers(1, 16)), draw(st.sampled_from([0, 1, 4, 16])), seed),
        "tile": tile,
        "temperature": draw(st.floats(0.05, 5)),
        "allowed": allowed,
        "top": draw(st.integers(0, min(vocab, 8))),
    }


@given(cases(), st.sampled_from([torch.float32, torch.bfloat16]))
@settings(deadline=None, max_examples=120)
def test_tiled_and_plain_agree(case, dtype):
    hidden, embedding, uniforms = exact(*case["inputs"], dtype)
    query = VocabQuery(case["temperature"], case["allowed"], uniforms, want_soft=True, top=case["top"])
    plain = vocab_head_reference(hidden, embedding, query, cap=CAP)
    mine = vocab_head(hidden, embedding, query, cap=CAP, tile=case["tile"])
    assert_agree(mine, plain)
    assert_same_samples(
        mine.sample, plain.sample, cumulative(hidden, embedding, case["temperature"], case["allowed"]), uniforms
    )
    # The soft embedding is compared with the length it could have. bfloat16 rounds the weights to 8 bits (the plain
    # operator after the division by their sum, the tiled one before) and the partial products of every tile.
    size = embedding.float().abs().max() + 1e-6
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    assert float((mine.soft - plain.soft).abs().max() / size) <= tolerance
    if case["top"]:
        # A forbidden id may stand among the best only with probability 0, when too few are allowed.
        torch.testing.assert_close(mine.top_logprobs, plain.top_logprobs, rtol=1e-5, atol=1e-5)


@given(st.integers(0, 2**31), st.integers(1, 80), st.floats(0.4, 5))
@settings(deadline=None, max_examples=40)
def test_tiled_and_plain_agree_on_ordinary_numbers(seed, tile, temperature):
    """Products that round: at the release's temperatures the rounding stays below 1e-5 of every statistic."""
    generator = torch.Generator().manual_seed(seed)
    hidden, embedding = torch.randn(6, 24, generator=generator), torch.randn(100, 24, generator=generator) * 0.4
    uniforms = torch.rand(6, dtype=torch.float64, generator=generator)
    query = VocabQuery(temperature, uniforms=uniforms, want_soft=True)
    plain = vocab_head_reference(hidden, embedding, query, cap=CAP)
    mine = vocab_head(hidden, embedding, query, cap=CAP, tile=tile)
    torch.testing.assert_close(mine.logsumexp, plain.logsumexp, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine.entropy, plain.entropy, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine.soft, plain.soft, rtol=1e-5, atol=1e-5)
    assert torch.equal(mine.argmax, plain.argmax)
    assert_same_samples(mine.sample, plain.sample, cumulative(hidden, embedding, temperature, None), uniforms)


@pytest.mark.parametrize("operator", [vocab_head, vocab_head_reference])
def test_the_definitions_hold_in_double_precision(operator):
    """logsumexp, entropy, soft embedding and top-k as the formulas say, with torch's own float64 functions."""
    hidden, embedding, _ = exact(5, 60, 8, 4, 1, torch.float32)
    found = operator(hidden, embedding, VocabQuery(0.7, want_soft=True, top=5), cap=CAP)
    z = softcap(hidden.double() @ embedding.double().T, CAP) / 0.7
    p = torch.softmax(z, -1)
    torch.testing.assert_close(found.logsumexp.double(), z.logsumexp(-1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.entropy.double(), torch.special.entr(p).sum(-1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.soft.double(), p @ embedding.double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.top_logprobs.double(), p.log().topk(5).values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(p.gather(1, found.top_ids), p.topk(5).values, rtol=1e-6, atol=0)
    assert found.sample is None


def test_ties_go_to_the_lowest_id_across_tiles():
    hidden, embedding = torch.ones(2, 4), torch.ones(40, 4)
    embedding[:7] = 0
    for tile in (1, 3, 8, 64):
        assert vocab_head(hidden, embedding, VocabQuery(), cap=CAP, tile=tile).argmax.tolist() == [7, 7]
    assert vocab_head_reference(hidden, embedding, VocabQuery(), cap=CAP).argmax.tolist() == [7, 7]


@pytest.mark.parametrize("operator", [vocab_head, vocab_head_reference])
def test_the_extreme_uniforms_choose_the_first_and_the_last_possible_id(operator):
    hidden, embedding, _ = exact(2, 100, 8, 2, 3, torch.float32)
    uniforms = torch.tensor([0.0, LARGEST], dtype=torch.float64)
    options = {"tile": 16} if operator is vocab_head else {}
    free = operator(hidden, embedding, VocabQuery(uniforms=uniforms), cap=CAP, **options)
    assert free.sample.tolist() == [0, 99]
    allowed = torch.zeros(100, dtype=torch.bool)
    allowed[[21, 40, 41, 60]] = True  # whole tiles forbidden at both ends, and the first ids of a tile
    result = operator(hidden, embedding, VocabQuery(uniforms=uniforms, allowed=allowed), cap=CAP, **options)
    assert result.sample.tolist() == [21, 60]


@given(st.integers(0, 2**31), st.integers(1, 20))
@settings(deadline=None, max_examples=40)
def test_a_uniform_on_the_border_of_two_tiles_never_yields_a_forbidden_id(seed, tile):
    """The border is where rounding is decided; forbidden ids at the start of a tile are what it could fall on."""
    vocab, generator = 90, torch.Generator().manual_seed(seed)
    hidden, embedding, _ = exact(1, vocab, 6, 4, seed, torch.float32)
    allowed = torch.rand(vocab, generator=generator) < 0.5
    allowed[::tile] = False
    allowed[int(torch.randint(vocab, (1,), generator=generator))] = True
    cdf = cumulative(hidden, embedding, 1.0, allowed)[0]
    borders = cdf[tile - 1 :: tile]
    uniforms = torch.cat([borders, borders.nextafter(torch.zeros(())), borders.nextafter(torch.ones(()).double())])
    uniforms = uniforms.clamp(0, LARGEST)
    rows = hidden.expand(len(uniforms), -1)
    for operator, options in ((vocab_head, {"tile": tile}), (vocab_head_reference, {})):
        query = VocabQuery(uniforms=uniforms, allowed=allowed)
        sample = operator(rows, embedding, query, cap=CAP, **options).sample
        assert bool(allowed[sample].all())


def test_a_border_that_rounding_moves_never_yields_a_forbidden_id():
    """Tile 0 holds 1.5·2⁻⁵³ of the mass, so (mass + 1) - 1 is 2⁻⁵², more than the mass; the uniform lies between."""
    embedding = torch.tensor([[-36.331], [0.0], [0.0], [0.0]])
    allowed = torch.tensor([True, False, False, True])
    for uniform in (1.8e-16, 2.0e-16, 2.2e-16):
        uniforms = torch.tensor([uniform], dtype=torch.float64)
        query = VocabQuery(uniforms=uniforms, allowed=allowed)
        result = vocab_head(torch.ones(1, 1), embedding, query, cap=1e6, tile=2)
        assert result.sample.tolist() == [3]


@pytest.mark.parametrize("operator", [vocab_head, vocab_head_reference])
@pytest.mark.parametrize("temperature", [0.6, 2.0])
def test_samples_follow_the_softmax(operator, temperature):
    """Chi-square over 240,000 draws from 48 ids; ids expected fewer than 10 times share a cell. Fixed seed."""
    hidden, embedding, _ = exact(1, 48, 8, 3, 11, torch.float32)
    z = softcap(hidden.double() @ embedding.double().T, CAP)[0] / temperature
    p = torch.softmax(z, -1)
    counts = torch.zeros(48, dtype=torch.int64)
    options = {"tile": 10} if operator is vocab_head else {}
    for part in range(12):
        uniforms = SeededNoise(5).uniform(part, 0, 20_000)
        rows = hidden.expand(20_000, -1)
        query = VocabQuery(temperature, uniforms=uniforms)
        sample = operator(rows, embedding, query, cap=CAP, **options).sample
        counts += torch.bincount(sample, minlength=48)
    expected = p * int(counts.sum())
    rare = expected < 10
    observed = torch.cat([counts[~rare].double(), counts[rare].sum()[None].double()]).numpy()
    wanted = torch.cat([expected[~rare], expected[rare].sum()[None]]).numpy()
    filled = wanted > 0
    assert stats.chisquare(observed[filled], wanted[filled]).pvalue > 1e-3


def test_entropy_of_certainty_and_of_ignorance():
    """Practically one id: 0, never below. All ids alike: log V."""
    embedding = torch.eye(64)
    certain = vocab_head(torch.eye(64)[:1] * 1e4, embedding, VocabQuery(0.05), cap=CAP, tile=7)
    assert float(certain.entropy) == 0.0
    flat = vocab_head(torch.zeros(1, 64), embedding, VocabQuery(), cap=CAP, tile=7)
    assert float(flat.entropy) == pytest.approx(torch.tensor(64.0).log().item(), rel=1e-6)
    assert int(flat.argmax) == 0


def test_softcap_keeps_logits_inside_and_is_the_identity_near_zero():
    assert float(softcap(torch.tensor(1e6), CAP)) <= CAP
    assert float(softcap(torch.tensor(0.01), CAP)) == pytest.approx(0.01, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_position_has_a_temperature_of_its_own(dtype):
    """As if each were asked alone; and the log-probability of a wanted id is that of the softmax."""
    hidden, embedding, uniforms = exact(5, 150, 8, 4, 1, dtype)
    heat, targets = torch.tensor([0.3, 0.8, 1.0, 2.0, 0.05]), torch.tensor([0, 149, 64, 63, 7])
    query = VocabQuery(heat, uniforms=uniforms, want_soft=True, top=3, targets=targets)
    together = vocab_head(hidden, embedding, query, cap=CAP, tile=64)
    plain = vocab_head_reference(hidden, embedding, query, cap=CAP)
    assert_agree(together, plain)
    z = softcap((hidden @ embedding.T).float(), CAP) / heat[:, None]
    wanted = torch.log_softmax(z, -1).gather(1, targets[:, None])[:, 0]
    for one in (together, plain):
        torch.testing.assert_close(one.target_logprobs, wanted, rtol=1e-5, atol=1e-5)
    for row in range(5):
        part = slice(row, row + 1)
        query = VocabQuery(float(heat[row]), uniforms=uniforms[part], want_soft=True)
        alone = vocab_head_reference(hidden[part], embedding, query, cap=CAP)
        assert torch.equal(alone.argmax, together.argmax[part])
        torch.testing.assert_close(alone.entropy, together.entropy[part], rtol=1e-5, atol=ENTROPY_FLOOR)
        torch.testing.assert_close(alone.soft, together.soft[part], rtol=1e-2, atol=1e-3)


BAD = [
    ({"temperature": 0.0}, "temperature must be a number > 0, found 0.0"),
    ({"temperature": float("nan")}, "temperature must be a number > 0, found nan"),
    ({"temperature": torch.ones(2)}, r"temperature must be floating point \[\] or \[3\], found float32 \[2\]"),
    ({"allowed": torch.ones(3, 9, dtype=torch.bool)}, r"allowed must be bool \[10\] or \[3, 10\]"),
    ({"allowed": torch.ones(10)}, r"allowed must be bool .* found float32 \[10\]"),
    ({"uniforms": torch.zeros(4)}, r"uniforms must be floating point \[3\], found float32 \[4\]"),
    ({"targets": torch.zeros(3, dtype=torch.int32)}, r"targets must be int64 \[3\], found int32 \[3\]"),
    ({"top": 11}, r"top must be 0 … 10, found 11"),
    ({"classes": [Classified(TokenClasses(np.zeros(9, np.int64), 1), 0, 3)]}, "classes must be of 10 ids, found 9"),
    ({"classes": [Classified(TokenClasses(np.zeros(10, np.int64), 1), 1, 4)]}, "positions 0 … 3, found 1 … 4"),
    ({"mask": torch.zeros(3, dtype=torch.int64)}, r"with mask, allowed must be bool \[masks, 10\]"),
    ({"mask": torch.zeros(2, dtype=torch.int64)}, r"mask must be int64 \[3\], found int64 \[2\]"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_a_query_that_does_not_fit_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        VocabQuery(**fields).check(3, 10)

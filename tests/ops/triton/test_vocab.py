"""The vocabulary operator against the plain one, which materializes everything.

Embeddings and hidden states are small whole numbers: their products are exact in any order, in bfloat16 too, so argmax,
samples and best ids have to agree id by id.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ops.test_classes import check
from scumble.ops import VocabQuery, softcap
from scumble.ops.classes import Classified, TokenClasses
from scumble.ops.plain_vocab import vocab_head as plain
from scumble.ops.triton import vocab, vocab_classes, vocab_soft

pytestmark = pytest.mark.usefixtures("guarded")

CAP = 30.0


def whole(n: int, vocabulary: int, size: int, dtype: torch.dtype, device: torch.device):
    hidden = torch.randint(-1, 2, (n, size), device=device).to(dtype)
    embedding = torch.randint(-1, 2, (vocabulary, size), device=device).to(dtype)
    return hidden, embedding


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocab_soft, "CHUNK", 512)


def agree(ours, reference, dtype: torch.dtype) -> None:
    assert torch.equal(ours.argmax, reference.argmax)
    torch.testing.assert_close(ours.logsumexp, reference.logsumexp, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(ours.entropy, reference.entropy, rtol=1e-4, atol=3e-6)
    for name in ("sample", "top_ids"):
        one, two = getattr(ours, name), getattr(reference, name)
        assert (one is None) == (two is None)
        assert one is None or torch.equal(one, two), name
    for name in ("top_logprobs", "target_logprobs"):
        one, two = getattr(ours, name), getattr(reference, name)
        assert (one is None) == (two is None)
        if one is not None:
            torch.testing.assert_close(one, two, rtol=2e-6, atol=4e-6)
    if reference.soft is not None:
        error = float((ours.soft - reference.soft).norm() / reference.soft.norm())
        assert error < {torch.bfloat16: 5e-3, torch.float32: 1e-5}[dtype]


@pytest.mark.parametrize("vocabulary", [1000, 1536])
def test_statistics_sample_and_soft_embedding(vocabulary: int, dtype: torch.dtype, device: torch.device) -> None:
    hidden, embedding = whole(21, vocabulary, 80, dtype, device)
    query = VocabQuery(
        torch.linspace(0.4, 1.5, 21, device=device),
        uniforms=torch.rand(21, dtype=torch.float64, device=device),
        want_soft=True,
    )
    agree(vocab.vocab_head(hidden, embedding, query, cap=CAP), plain(hidden, embedding, query, cap=CAP), dtype)


@pytest.mark.parametrize("by_position", [False, True])
def test_only_allowed_ids_exist(by_position: bool, device: torch.device) -> None:
    """A mask leaves whole tiles empty, and single ids in others."""
    hidden, embedding = whole(9, 700, 64, torch.float32, device)
    allowed = torch.rand(*((9, 700) if by_position else (700,)), device=device) < 0.05
    allowed[..., 128:400] = False
    allowed[..., 650] = True
    uniforms, targets = torch.rand(9, dtype=torch.float64, device=device), torch.full((9,), 650, device=device)
    query = VocabQuery(1.0, allowed, uniforms, want_soft=True, top=1, targets=targets)
    ours = vocab.vocab_head(hidden, embedding, query, cap=CAP)
    agree(ours, plain(hidden, embedding, query, cap=CAP), torch.float32)
    assert ours.sample is not None
    assert allowed.expand(9, 700).gather(1, ours.sample[:, None]).all()


def test_best_ids_and_targets(device: torch.device) -> None:
    """No two logits of a position are equal here: which of two equal ids `topk` names first is nobody's promise."""
    hidden, embedding = torch.randn(7, 48, device=device), torch.randn(600, 48, device=device)
    query = VocabQuery(top=5, targets=torch.randint(0, 600, (7,), device=device))
    ours, reference = (head(hidden, embedding, query, cap=CAP) for head in (vocab.vocab_head, plain))
    agree(ours, reference, torch.float32)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_distribution(uniform: float, device: torch.device) -> None:
    hidden, embedding = whole(5, 300, 64, torch.float32, device)
    allowed = torch.zeros(300, dtype=torch.bool, device=device)
    allowed[[70, 199]] = True
    uniforms = torch.full((5,), uniform, dtype=torch.float64, device=device)
    ours = vocab.vocab_head(hidden, embedding, VocabQuery(1.0, allowed, uniforms), cap=CAP)
    assert ours.sample is not None
    assert ours.sample.tolist() == [70 if uniform == 0 else 199] * 5


def test_sampling_keeps_the_law(device: torch.device) -> None:
    """Uniforms on a grid: every id comes up in proportion to its probability, to within one point of the grid."""
    hidden, embedding = whole(1, 200, 32, torch.float32, device)
    hidden, points = hidden.repeat(400, 1), torch.arange(400, dtype=torch.float64, device=device) / 400
    ours = vocab.vocab_head(hidden, embedding, VocabQuery(3.0, uniforms=points), cap=CAP)
    z = CAP * torch.tanh((hidden[0] @ embedding.T).double() / CAP) / 3.0
    assert ours.sample is not None
    count = torch.bincount(ours.sample, minlength=200)
    assert float((count / 400 - torch.softmax(z, -1)).abs().max()) <= 1 / 400 + 1e-6


def test_settled_positions_do_not_read_the_embedding_again(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All positions are sure of one id: of all tiles of the vocabulary, the second read goes over that id's."""
    read: list[int] = []

    def launch(name, kernel, grid, arguments, **constants):
        if name == "soft":
            read.append(int(arguments[4].sum()))  # how many tiles are on the lists
        plain_launch(name, kernel, grid, arguments, **constants)

    plain_launch = vocab_soft.launch
    monkeypatch.setattr(vocab_soft, "launch", launch)
    hidden = torch.zeros(4, 64, device=device)
    hidden[:, 0] = 60.0
    embedding = torch.zeros(1000, 64, device=device)
    embedding[123, 0] = 60.0
    ours = vocab.vocab_head(hidden, embedding, VocabQuery(0.5, want_soft=True), cap=CAP)
    torch.testing.assert_close(ours.soft, embedding[123].expand(4, -1))
    assert read == [1, 0]


def test_a_position_of_no_number_says_so_and_names_ids_that_exist(device: torch.device) -> None:
    """The engine looks at the entropy; ids are read from tables before anybody could know. The other positions keep
    their bits."""
    hidden, embedding = torch.randn(9, 64, device=device).bfloat16(), torch.randn(700, 64, device=device).bfloat16()
    query = VocabQuery(uniforms=torch.rand(9, dtype=torch.float64, device=device), want_soft=True, top=2)
    before = vocab.vocab_head(hidden, embedding, query, cap=CAP)
    hidden[4, 3] = float("nan")
    after = vocab.vocab_head(hidden, embedding, query, cap=CAP)
    others = torch.arange(9, device=device) != 4
    for name in ("logsumexp", "entropy", "argmax", "sample", "soft", "top_ids"):
        assert torch.equal(getattr(after, name)[others], getattr(before, name)[others]), name
    for statistic in (after.logsumexp, after.entropy, after.soft):
        assert statistic is not None
        assert statistic[4].isnan().all()
    for ids in (after.argmax, after.sample, after.top_ids):
        assert ids is not None
        assert bool((ids >= 0).all() and (ids < 700).all())


def test_a_single_logit_of_no_number_is_noticed(device: torch.device) -> None:
    hidden, embedding = torch.randn(3, 64, device=device), torch.randn(700, 64, device=device)
    embedding[600, 5] = float("nan")
    found = vocab.vocab_head(hidden, embedding, VocabQuery(), cap=CAP)
    assert found.entropy.isnan().all()
    assert bool((found.argmax < 700).all())


def test_a_position_does_not_depend_on_the_others(device: torch.device) -> None:
    hidden, embedding = torch.randn(40, 64, device=device).bfloat16(), torch.randn(900, 64, device=device).bfloat16()
    uniforms = torch.rand(40, dtype=torch.float64, device=device)
    together = vocab.vocab_head(hidden, embedding, VocabQuery(uniforms=uniforms, want_soft=True), cap=CAP)
    part = slice(5, 8)
    query = VocabQuery(uniforms=uniforms[part], want_soft=True)
    alone = vocab.vocab_head(hidden[part].contiguous(), embedding, query, cap=CAP)
    for name in ("logsumexp", "entropy", "argmax", "sample", "soft"):
        assert torch.equal(getattr(together, name)[part], getattr(alone, name)), name


@pytest.mark.parametrize("masked", [False, True])
def test_statistics_by_classes(masked: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows' classes in one call, among others without; classes of one id, of many over several chunks and pieces,
    and of none; with a mask."""
    monkeypatch.setattr(vocab_classes, "PIECE", 96)
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randint(-8, 9, (9, 16), generator=generator) / 4
    embedding = torch.randint(-8, 9, (700, 16), generator=generator) / 8 + torch.arange(700)[:, None] / 2**12
    allowed = torch.rand(9, 700, generator=generator) < 0.5 if masked else None
    if allowed is not None:
        allowed[:, 0] = True
    rng = np.random.default_rng(0)
    of_token = np.minimum(rng.integers(0, 8, 700), 4)
    of_token[0], count = 6, 8  # 5 and 7: of no id
    spans = (of_token, slice(1, 4)), (of_token[::-1].copy(), slice(6, 9))
    asked = [Classified(TokenClasses(kinds, count), span.start, span.stop) for kinds, span in spans]
    query = VocabQuery(0.7, None if allowed is None else allowed.to(device), want_soft=masked, classes=asked)
    found = vocab.vocab_head(hidden.to(device), embedding.to(device), query, cap=CAP).classes
    z = softcap(hidden @ embedding.T, CAP) / 0.7
    if allowed is not None:
        z.masked_fill_(~allowed, float("-inf"))
    rounding = 5e-6  # a tanh made of an exponential
    for one, (kinds, span) in zip(found, spans, strict=True):
        check(one, z[span].double().numpy(), kinds, rng.random(3), rounding)


def test_packed_bits(device: torch.device) -> None:
    allowed = torch.rand(3, 77, device=device) < 0.5
    words = vocab.packed(allowed)
    bits = (words[:, :, None] >> torch.arange(32, device=device)) & 1
    assert torch.equal(bits.flatten(1)[:, :77].bool(), allowed)

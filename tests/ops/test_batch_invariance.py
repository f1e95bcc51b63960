"""A token's result is the same, bit for bit, whichever tokens stand beside it: for every operation of a backend that
claims it, in every number format, and for whole forwards of mixed segments. So no request's tokens depend on others.
"""

import pytest
import torch
from torch import Tensor

from scumble.formats import build
from scumble.model import Segment
from scumble.model.layer import Layer
from scumble.ops import VocabQuery, choose
from scumble.ops.cpu import native
from tiny import FULL, SLIDING, prompt, tiny_model

pytestmark = pytest.mark.skipif(native.library() is None, reason="no compiler, or a processor without AVX2")
TOGETHER = 17
GROUPS = (1, 2, 3, 8)  # rows that are asked together, out of 17
OPS = choose("cpu", torch.bfloat16).ops
FORMS = (None, "int8", "int4")


def some(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


def assert_invariant(call, rows: int = TOGETHER) -> None:
    """call(indices) gives results by row, tensors or tuples of them; each row's are those that it gets among all."""
    whole = _parts(call(torch.arange(rows)))
    for size in GROUPS:
        for first in range(0, rows - size + 1, max(1, rows // 4)):
            some_rows = torch.arange(first, first + size)
            for mine, all_of_them in zip(_parts(call(some_rows)), whole, strict=True):
                assert torch.equal(mine, all_of_them[some_rows]), (size, first)


def _parts(found) -> list[Tensor]:
    return [one for one in (found if isinstance(found, tuple) else (found,)) if one is not None]


def test_the_backend_says_so():
    assert OPS.batch_invariant


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("size", "out"), [(32, 7), (96, 64), (200, 130), (768, 1024)])
def test_products(form, size, out):
    weight, x = build.weight(some(out, size, seed=1, scale=size**-0.5), form, OPS), some(TOGETHER, size)
    assert_invariant(lambda rows: weight.product(x[rows]))


def test_a_weight_that_is_not_packed_gives_the_same_bits():
    plain, x = some(130, 200, seed=1), some(TOGETHER, 200)
    assert torch.equal(OPS.linear(x, plain), build.weight(plain, None, OPS).product(x))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("size", "width", "count", "k"), [(32, 12, 4, 2), (96, 72, 5, 4), (192, 192, 16, 2)])
def test_experts(form, size, width, count, k):
    gate_up, down = some(count, 2 * width, size, seed=1, scale=size**-0.5), some(count, size, width, seed=2)
    experts, x, weights = build.experts(gate_up, down, form, OPS), some(TOGETHER, size), torch.rand(TOGETHER, k)
    chosen = torch.stack([torch.randperm(count)[:k] for _ in range(TOGETHER)])
    assert_invariant(lambda rows: experts.mix(x[rows], weights[rows].contiguous(), chosen[rows].contiguous()))


def test_norms_router_and_tails():
    x, y, z, weight = some(TOGETHER, 50), some(TOGETHER, 50, seed=1), some(TOGETHER, 50, seed=2), some(50, seed=3)
    heads, head_weight = some(TOGETHER, 3, 48), some(48, seed=4)
    angles = torch.randn(TOGETHER, 1, 24).repeat(1, 1, 2)
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    denoise, scalars = torch.arange(TOGETHER)[:, None] % 2 == 0, (some(1), some(1, seed=1))
    assert_invariant(lambda rows: OPS.rms_norm(x[rows], weight, 1e-6))
    assert_invariant(lambda rows: OPS.geglu(x[rows], y[rows]))
    assert_invariant(lambda rows: OPS.norm_rope(heads[rows], head_weight, cos[rows], sin[rows], 1e-6))
    assert_invariant(lambda rows: OPS.attention_tail(x[rows], y[rows], weight, weight, weight, 1e-6))
    assert_invariant(
        lambda rows: OPS.layer_tail(x[rows], (y[rows], z[rows]), (weight,) * 3, denoise[rows], scalars, 1e-6)
    )
    assert_invariant(lambda rows: OPS.router(x[rows], weight, some(7, 50), some(7).abs(), 3, 1e-6))


@pytest.mark.parametrize(("heads", "groups", "dim"), [(4, 1, 18), (8, 4, 128), (16, 2, 48)])
@pytest.mark.parametrize("seen", [23, 150])
def test_attention_of_few_and_of_many_queries(heads, groups, dim, seen):
    """Queries of one row are read with or without packing, by their number: the same bits."""
    queries = some(TOGETHER, heads, dim, scale=3 * dim**-0.5)
    keys, values = (some(groups, seen, dim, seed=s) for s in (1, 2))
    assert_invariant(lambda rows: OPS.attend_all(queries[rows], keys, values))


@pytest.mark.parametrize("window", [None, 6, 20])
@pytest.mark.parametrize(("heads", "groups", "dim"), [(4, 1, 18), (8, 4, 64)])
def test_chunks_of_a_text_attend_as_the_whole_does(window, heads, groups, dim):
    """Each chunk sees the keys that a cache would keep for it: it begins anywhere, at odd positions too."""
    tokens = 41
    queries, keys, values = (
        some(tokens, heads, dim),
        some(groups, tokens, dim, seed=1),
        some(groups, tokens, dim, seed=2),
    )
    whole = OPS.attend_causal(queries, keys, values, window)
    for size in (1, 2, 3, 7, 16):
        for begin in range(0, tokens, size):
            end = min(begin + size, tokens)
            first = 0 if window is None else max(0, begin - window + 1)
            seen = (part[:, first:end].contiguous() for part in (keys, values))
            mine = OPS.attend_causal(queries[begin:end].contiguous(), *seen, window, first)
            assert torch.equal(mine, whole[begin:end]), (size, begin)


@pytest.mark.parametrize("form", [None, "int8"])
@pytest.mark.parametrize("vocab", [97, 2048, 3001])
def test_the_vocabulary_head(form, vocab):
    table = build.Table(some(vocab, 64, seed=1), OPS)
    build.add_head(table, form)
    hidden, heat = some(TOGETHER, 64), torch.linspace(0.1, 2.0, TOGETHER)
    uniforms, allowed = torch.rand(TOGETHER, dtype=torch.float64), torch.rand(TOGETHER, vocab) < 0.5
    targets = torch.randint(vocab, (TOGETHER,))

    def call(rows: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        query = VocabQuery(
            temperature=heat[rows],
            allowed=None if mask is None else mask[rows],
            uniforms=uniforms[rows],
            want_soft=True,
            top=5,
            targets=targets[rows],
        )
        found = OPS.vocab_head(hidden[rows], table.weight, query, cap=30.0, head=table.head)
        return (
            found.logsumexp, found.entropy, found.argmax, found.sample, found.soft, found.top_ids, found.top_logprobs,
            found.target_logprobs,
        )  # fmt: skip

    with torch.no_grad():
        assert_invariant(lambda rows: call(rows, None))
        assert_invariant(lambda rows: call(rows, allowed))


SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "layers": (SLIDING, FULL, SLIDING, FULL),
}


@pytest.fixture(params=FORMS, ids=["bfloat16", "int8", "int4"], scope="module")
def model(request):
    made = tiny_model(dtype=torch.bfloat16, **SHAPE)
    return made.use(OPS).convert(request.param)


def cached(model, ids: list[int]):
    cache = model.new_cache()
    if ids:
        model.encode(torch.tensor(ids), cache)
    return cache


def by_steps(model, ids: list[int]):
    cache = model.new_cache()
    for one in ids:
        model.encode(torch.tensor([one]), cache)
    return cache


@torch.no_grad()
def test_rows_of_mixed_segments_in_one_forward(model):
    """Prefill, an autoregressive step, passes over canvases of several lengths, a reading: alone, and all at once."""

    def segments() -> list[Segment]:
        soft = some(8, 64, seed=9).float()
        return [
            Segment(torch.tensor(prompt(11, 1)), cached(model, []), "encode"),
            Segment(torch.tensor(prompt(1, 2)), cached(model, prompt(9, 3)), "encode"),
            Segment(torch.tensor(prompt(8, 4)), cached(model, prompt(20, 5)), "denoise", soft),
            Segment(torch.tensor(prompt(3, 6)), cached(model, prompt(7, 7)), "denoise"),
            Segment(torch.tensor(prompt(5, 8)), cached(model, prompt(30, 9)), "read"),
            Segment(torch.tensor(prompt(17, 10)), cached(model, prompt(4, 11)), "encode"),
        ]

    together = segments()
    hidden = model(together).split([segment.tokens.shape[0] for segment in together])
    for number, segment in enumerate(segments()):
        assert torch.equal(model([segment]), hidden[number]), number
    for size in (2, 3):
        for first in range(len(together) - size + 1):
            group = segments()[first : first + size]
            mine = model(group).split([segment.tokens.shape[0] for segment in group])
            assert all(torch.equal(a, b) for a, b in zip(mine, hidden[first : first + size], strict=True))


@torch.no_grad()
@pytest.mark.parametrize("sizes", [(1,) * 8, (1, 3, 1, 2), (1, 20)])
def test_steps_of_several_rows_in_one_call(model, sizes, monkeypatch):
    """Rows of contexts of different lengths, below the window and past it, each over its own cache: twice in turn."""
    monkeypatch.setattr(Layer, "forward", lambda *_: pytest.fail("a layer ran module by module"))
    batch, alone = ([by_steps(model, prompt(1 + 3 * row, row)) for row in range(len(sizes))] for _ in range(2))
    for turn in range(2):
        tokens = [torch.tensor(prompt(size, 10 * turn + row)) for row, size in enumerate(sizes)]
        together = model([Segment(ids, cache, "encode") for ids, cache in zip(tokens, batch, strict=True)]).split(sizes)
        for ids, cache, mine in zip(tokens, alone, together, strict=True):
            assert torch.equal(model.encode(ids, cache), mine)
    for one, other in zip(batch, alone, strict=True):
        for a, b in zip(one.layers, other.layers, strict=True):
            assert torch.equal(a.keys[:, a.start : a.end], b.keys[:, b.start : b.end])


@torch.no_grad()
def test_a_prompt_in_chunks_is_the_prompt_at_once(model):
    """Also past the window, token by token (one native call a layer), and in odd chunks: states and a canvas."""
    ids, canvas = torch.tensor(prompt(37)), torch.tensor(prompt(8, seed=3))
    results = []
    for sizes in ([37], [1] * 37, [5, 1, 7, 4, 4, 4, 12], [36, 1]):
        cache = model.new_cache()
        states = torch.cat([model.encode(part, cache) for part in ids.split(sizes)])
        results.append((states, model([Segment(canvas, cache, "denoise")])))
    for states, after in results[1:]:
        assert torch.equal(states, results[0][0])
        assert torch.equal(after, results[0][1])

"""Native kernels against the torch operations they stand for, on shapes that fill neither vectors nor panels.

Tolerances: results are bfloat16, which rounds to 2⁻⁹ of a number. A kernel adds in another order, or keeps float32
where torch rounds in between, so a result may land on the neighbouring number: 2⁻⁷ of its magnitude covers that twice.
"""

import ctypes
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from scumble.ops import REFERENCE, VocabQuery, vocab_head_reference
from scumble.ops.cpu import CpuOps, native
from scumble.ops.reference import apply_rope, attend_grouped, causal_mask

needs_kernels = pytest.mark.skipif(native.library() is None, reason="no compiler, or a processor without AVX2")
CLOSE = 2.0**-7


def some(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


def assert_near(mine: Tensor, plain: Tensor, tolerance: float = CLOSE) -> None:
    """Within `tolerance` of each number, or of the typical size where numbers cancel to near zero."""
    mine, plain = mine.float(), plain.float()
    size = plain.abs() + plain.square().mean().sqrt()
    assert float(((mine - plain).abs() / size).max()) <= tolerance


rms_norm = REFERENCE.rms_norm


@pytest.fixture
def ops():
    lib = native.library()
    assert lib is not None
    return CpuOps(lib)


@needs_kernels
class TestAgainstTorch:
    @pytest.mark.parametrize(("n", "size"), [(1, 16), (5, 48), (3, 50), (200, 768)])
    def test_rms_norm(self, ops, n, size):
        x, weight = some(n, size), some(size, seed=1)
        for w in (weight, None):
            assert_near(ops.rms_norm(x, w, 1e-6), rms_norm(x.float(), None if w is None else w.float(), 1e-6))

    @pytest.mark.parametrize(("n", "heads", "dim"), [(1, 1, 6), (7, 3, 32), (5, 2, 72), (40, 8, 128)])
    def test_norm_and_rotary_positions(self, ops, n, heads, dim):
        x, weight = some(n, heads, dim), some(dim, seed=1)
        angles = torch.randn(n, 1, dim // 2).repeat(1, 1, 2)
        cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
        normed = rms_norm(x.float(), weight.float(), 1e-6)
        plain = apply_rope(normed.bfloat16(), cos, sin)
        assert_near(ops.norm_rope(x, weight, cos, sin, 1e-6), plain, 2 * CLOSE)

    @pytest.mark.parametrize("size", [16, 50, 768])
    def test_tails_of_a_layer(self, ops, size):
        x, y, one, two, three = (some(9, size, seed=s) for s in range(5))
        w1, w2, w3 = (some(size, seed=s) for s in range(5, 8))
        norm = lambda v, w: rms_norm(v.float(), w.float(), 1e-6).bfloat16()  # noqa: E731
        h, first, second = ops.attention_tail(x, y, w1, w2, w3, 1e-6)
        plain = x + norm(y, w1)
        assert_near(h, plain)
        assert_near(first, norm(plain, w2), 2 * CLOSE)
        assert_near(second, norm(plain, w3), 2 * CLOSE)
        denoise = torch.arange(9)[:, None] % 2 == 0
        scalars = torch.tensor([0.5]).bfloat16(), torch.tensor([1.25]).bfloat16()
        out = ops.layer_tail(one, (two, three), (w1, w2, w3), denoise, scalars, 1e-6)
        plain = (one + norm(norm(two, w1) + norm(three, w2), w3)) * torch.where(denoise, *scalars)
        assert_near(out, plain, 2 * CLOSE)

    def test_geglu(self, ops):
        gate, up = some(7, 37, scale=4), some(7, 37, seed=1)
        plain = torch.nn.functional.gelu(gate.float(), approximate="tanh") * up.float()
        assert_near(ops.geglu(gate, up), plain)
        edges = torch.tensor([-1e30, -60.0, -0.0, 0.0, 60.0, 1e30]).bfloat16()
        assert ops.geglu(edges, torch.ones_like(edges)).tolist() == [0, 0, 0, 0, *edges[-2:].tolist()]

    @pytest.mark.parametrize(("n", "experts", "k"), [(1, 4, 2), (6, 7, 7), (33, 32, 4)])
    def test_router(self, ops, n, experts, k):
        h, scale, per_expert = some(n, 50), 1 + some(50, seed=3, scale=0.1), 1 + some(experts, seed=4, scale=0.1)
        inputs = (h, scale, some(experts, 50, seed=5), per_expert, k, 1e-6)
        weights, chosen, _ = REFERENCE.router(*inputs)
        mine, ids, probabilities = ops.router(*inputs)
        assert torch.equal(ids, chosen)
        torch.testing.assert_close(mine, weights, rtol=1e-5, atol=1e-6)  # all in float32
        assert probabilities is None

    def test_router_takes_the_lower_of_equal_experts_once(self, ops):
        ones = torch.ones(4, 16).bfloat16()
        _, ids, _ = ops.router(some(3, 16), ones[0], ones, ones[:, 0].contiguous(), 3, 1e-6)
        assert ids.tolist() == [[0, 1, 2]] * 3

    @pytest.mark.parametrize(
        ("n", "size", "width", "count", "k"),
        [(1, 32, 16, 4, 2), (3, 50, 18, 2, 2), (40, 48, 12, 3, 1), (61, 96, 70, 5, 4), (64, 64, 32, 16, 2)],
    )
    def test_experts(self, ops, n, size, width, count, k):
        gate_up = some(count, 2 * width, size, seed=1, scale=size**-0.5)
        down = some(count, size, width, seed=2, scale=width**-0.5)
        x, weights = some(n, size), torch.rand(n, k)
        chosen = torch.stack([torch.randperm(count)[:k] for _ in range(n)])
        plain = REFERENCE.experts(x, weights, chosen, gate_up, down)
        mine = ops.experts(x, weights, chosen, gate_up, down)
        assert_near(mine, plain, 2 * CLOSE)

    @pytest.mark.parametrize("n", [1, 2, 4, 5, 40])
    @pytest.mark.parametrize(("size", "out"), [(32, 64), (50, 7), (768, 130)])
    def test_linear(self, ops, n, size, out):
        x, weight = some(n, size), some(out, size, seed=1, scale=size**-0.5)
        assert_near(ops.linear(x, weight), x.float() @ weight.float().T)

    @pytest.mark.parametrize(
        ("n", "heads", "groups", "dim", "seen", "window"),
        [
            (16, 8, 4, 64, 150, 0),
            (33, 4, 1, 18, 33, 33),
            (50, 8, 2, 128, 77, 20),
            (17, 4, 2, 6, 40, 3),
            (1, 8, 4, 128, 129, 0),
            (1, 4, 1, 18, 33, 20),
            (3, 4, 2, 72, 40, 3),
            (2, 2, 2, 6, 2, 2),
        ],
    )
    @pytest.mark.parametrize("first", [0, 7])
    def test_attention(self, ops, n, heads, groups, dim, seen, window, first):
        queries = some(n, heads, dim, scale=3 * dim**-0.5)
        keys, values = (some(groups, seen + 9, dim, seed=s)[:, 4 : seen + 4] for s in (1, 2))
        mask = causal_mask(n, seen, window, queries.device) if window else None
        plain = attend_grouped(queries.float(), keys.float(), values.float(), mask)
        assert_near(ops._attend(queries, keys, values, window, first), plain, 2 * CLOSE)


@needs_kernels
class TestVocabulary:
    """z is the reference's bit for bit, exp is good to 1e-7, sums are float64: only products that round differently
    remain, and here they do not round: multiples of 1/4 and 1/8 in few dimensions."""

    @pytest.mark.parametrize("temperature", [0.05, 0.4, 0.8, 3.0])
    @pytest.mark.parametrize(("vocab", "spread"), [(5000, 1), (4096, 8), (1027, 16), (1027, 0)])
    def test_sweep(self, ops, vocab, spread, temperature):
        generator = torch.Generator().manual_seed(vocab)
        hidden = (torch.randint(-spread, spread + 1, (70, 8), generator=generator) / 4).bfloat16()
        embedding = (torch.randint(-8, 9, (vocab, 8), generator=generator) / 8).bfloat16()
        uniforms = torch.rand(70, dtype=torch.float64, generator=generator)
        query = VocabQuery(temperature, uniforms=uniforms, want_soft=True)
        mine = ops.vocab_head(hidden, embedding, query, cap=30.0)
        plain = vocab_head_reference(hidden, embedding, query, cap=30.0)
        torch.testing.assert_close(mine.logsumexp, plain.logsumexp, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mine.entropy, plain.entropy, rtol=1e-5, atol=1e-15)
        assert torch.equal(mine.argmax, plain.argmax)
        assert float((mine.soft - plain.soft).abs().max()) <= CLOSE  # of embeddings of size 1
        z = 30.0 * torch.tanh((hidden @ embedding.T).float() / 30.0) / temperature
        cdf = torch.softmax(z.double(), -1).cumsum(-1)
        assert mine.sample is not None
        assert plain.sample is not None
        for row in (mine.sample != plain.sample).nonzero()[:, 0].tolist():
            low, high = sorted((int(mine.sample[row]), int(plain.sample[row])))
            assert bool(((cdf[row, low:high] - uniforms[row]).abs() < 1e-6).all()), "samples differ without a tie"

    @pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-53])
    def test_extreme_uniforms_give_an_id_with_mass(self, ops, uniform):
        hidden, embedding = torch.full((70, 4), 9.0).bfloat16(), torch.full((3000, 4), -9.0).bfloat16()
        embedding[[77, 2222]] = 9.0
        uniforms = torch.full((70,), uniform, dtype=torch.float64)
        found = ops.vocab_head(hidden, embedding, VocabQuery(0.02, uniforms=uniforms), cap=30.0).sample
        assert set(found.tolist()) == {77 if uniform == 0 else 2222}

    @pytest.mark.parametrize("shared", [True, False])
    def test_masks_wanted_ids_and_a_temperature_a_position(self, ops, shared):
        generator = torch.Generator().manual_seed(1)
        hidden = (torch.randint(-4, 5, (20, 8), generator=generator) / 4).bfloat16()
        embedding = (torch.randint(-8, 9, (2100, 8), generator=generator) / 8).bfloat16()
        allowed = torch.rand(2100 if shared else (20, 2100), generator=generator) < 0.3
        allowed[..., 1024:2048] = False  # a whole tile
        allowed[..., 5] = True
        uniforms = torch.rand(20, dtype=torch.float64, generator=generator)
        heat, targets = torch.linspace(0.1, 2.0, 20), torch.full((20,), 5)
        query = VocabQuery(heat, allowed, uniforms, want_soft=True, top=7, targets=targets)
        mine = ops.vocab_head(hidden, embedding, query, cap=30.0)
        plain = vocab_head_reference(hidden, embedding, query, cap=30.0)
        torch.testing.assert_close(mine.logsumexp, plain.logsumexp, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mine.entropy, plain.entropy, rtol=1e-5, atol=1e-15)
        torch.testing.assert_close(mine.top_logprobs, plain.top_logprobs, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mine.target_logprobs, plain.target_logprobs, rtol=1e-5, atol=1e-5)
        assert torch.equal(mine.argmax, plain.argmax)
        assert torch.equal(mine.top_ids[:, 0], mine.argmax)
        assert bool(allowed.expand(20, -1).gather(1, mine.sample[:, None]).all())
        assert float((mine.sample == plain.sample).float().mean()) > 0.9  # the rest: rounding ties
        assert float((mine.soft - plain.soft).abs().max()) <= CLOSE

    def test_a_logit_that_is_no_number_shows_in_the_entropy(self, ops):
        hidden, embedding = some(6, 16), some(300, 16, seed=1)
        embedding[7, 3] = float("nan")
        assert bool(ops.vocab_head(hidden, embedding, VocabQuery(), cap=30.0).entropy.isnan().all())


@needs_kernels
def test_what_the_kernels_cannot_read_is_refused(ops):
    """Never read as something else."""
    for x in (some(4, 16).float(), some(16, 4).T):
        with pytest.raises(TypeError, match="contiguous bfloat16"):
            ops.rms_norm(x, None, 1e-6)


@needs_kernels
def test_processes_that_start_together_build_one_binary(tmp_path):
    code = "from scumble.ops.cpu import native; assert native.library() is not None"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    running = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    made = sorted(path.name for path in (tmp_path / "scumble" / "native").iterdir())
    assert len(made) == 2
    assert made[0].startswith("kernels-")


@needs_kernels
def test_a_structure_that_has_grown_is_refused_by_name(monkeypatch):
    class VocabState(native.VocabState):
        _fields_ = [("more", ctypes.c_int64)]  # noqa: RUF012

    monkeypatch.setitem(native.SHARED, "scumble_vocab_state_size", VocabState)
    lib = native.library()
    assert lib is not None
    with pytest.raises(RuntimeError, match=r"VocabState has \d+ bytes here and"):
        native.compare_layouts(lib)


@needs_kernels
def test_a_kernel_without_memory_raises_and_the_process_lives(ops):
    """Scores of 2⁴⁸ keys: the allocation fails inside a parallel region. Nothing is read before it."""
    queries, keys = some(1, 2, 8), some(1, 4, 8)
    with pytest.raises(MemoryError, match="scumble_attention: no memory"):
        ops.lib.scumble_attention(
            queries.data_ptr(), keys.data_ptr(), keys.data_ptr(), queries.data_ptr(), 1, 2, 1, 8, 2**48, 0, 0, 0, 1, 2
        )
    assert bool(ops.attend_all(queries, keys, keys).isfinite().all())


def raises_for_memory(lib: ctypes.CDLL, kernel: str, *sizes: int, room: Tensor | None = None) -> None:
    """One tensor stands for all of the kernel's: nothing is read before memory is asked for."""
    pointers = native.SIGNATURES[kernel].count("p")
    anything = torch.zeros(64) if room is None else room
    with pytest.raises(MemoryError, match=f"{kernel}: no memory"):
        getattr(lib, kernel)(*[anything.data_ptr()] * pointers, *sizes, 2)


@needs_kernels
@pytest.mark.parametrize(
    ("kernel", "sizes"),
    [
        ("experts_four", (1, 2**46, 4, 64, 64, 64, 64, 32, 32, 0, 0, 8)),
        ("law", (2**44, 1, 4, 1, 0)),
        ("train_norm_back", (1, 2**46, 0, 0)),
        ("train_add_norm_back", (1, 2**46)),
        ("train_norm_rope_back", (1, 1, 2**46)),
    ],
)
def test_so_do_others_whose_intermediate_results_are_too_large(ops, kernel, sizes):
    raises_for_memory(ops.lib, f"scumble_{kernel}", *sizes)


@needs_kernels
def test_so_do_products_of_four_bits(ops):
    """Rows without numbers: only room for the sums of 2²² rows is asked for, a GiB, in a process that may take less."""
    resource = pytest.importorskip("resource")
    rows = 2**22
    scales = torch.zeros(rows)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as stream:
        taken = int(stream.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**29, hard))
    try:
        raises_for_memory(ops.lib, "scumble_linear_four", rows, 0, 64, 32, 0, 0, 8, room=scales)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

"""Native kernels against the torch operations they stand for, on shapes that fill neither vectors nor panels.

Tolerances: results are bfloat16, which rounds to 2⁻⁹ of a number. A kernel adds in another order, or keeps float32
where torch rounds in between, so a result may land on the neighbouring number: 2⁻⁷ of its magnitude covers that twice.
"""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from scumble.kernels import fused, native, swept, tiled, vocab_head_reference
from scumble.model.attention import attend_grouped, causal_mask
from scumble.model.experts import Experts, Router
from scumble.model.layers import apply_rope, rms_norm

needs_kernels = pytest.mark.skipif(native.library() is None, reason="no compiler, or a processor without AVX-512 BF16")
CLOSE = 2.0**-7


def some(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


def assert_near(mine: Tensor, plain: Tensor, tolerance: float = CLOSE) -> None:
    """Within `tolerance` of each number, or of the typical size where numbers cancel to near zero."""
    mine, plain = mine.float(), plain.float()
    size = plain.abs() + plain.square().mean().sqrt()
    assert float(((mine - plain).abs() / size).max()) <= tolerance


@pytest.fixture
def lib():
    with torch.no_grad():
        yield native.library()


@needs_kernels
class TestAgainstTorch:
    @pytest.mark.parametrize(("n", "size"), [(1, 16), (5, 48), (3, 50), (200, 768)])
    def test_rms_norm(self, lib, n, size):
        x, weight = some(n, size), some(size, seed=1)
        for w in (weight, None):
            assert_near(fused.rms_norm(lib, x, w, 1e-6), rms_norm(x.float(), None if w is None else w.float(), 1e-6))

    @pytest.mark.parametrize(("n", "heads", "dim"), [(1, 1, 6), (7, 3, 32), (5, 2, 72), (40, 8, 128)])
    def test_norm_and_rotary_positions(self, lib, n, heads, dim):
        x, weight = some(n, heads, dim), some(dim, seed=1)
        angles = torch.randn(n, 1, dim // 2).repeat(1, 1, 2)
        cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
        normed = rms_norm(x.float(), weight.float(), 1e-6)
        plain = apply_rope(normed.bfloat16(), cos, sin)
        assert_near(fused.norm_rope(lib, x, weight, cos, sin, 1e-6), plain, 2 * CLOSE)

    @pytest.mark.parametrize("size", [16, 50, 768])
    def test_tails_of_a_layer(self, lib, size):
        x, y, one, two, three = (some(9, size, seed=s) for s in range(5))
        w1, w2, w3 = (some(size, seed=s) for s in range(5, 8))
        norm = lambda v, w: rms_norm(v.float(), w.float(), 1e-6).bfloat16()  # noqa: E731
        h, first, second = fused.attention_tail(lib, x, y, w1, w2, w3, 1e-6)
        plain = x + norm(y, w1)
        assert_near(h, plain)
        assert_near(first, norm(plain, w2), 2 * CLOSE)
        assert_near(second, norm(plain, w3), 2 * CLOSE)
        denoise = torch.arange(9)[:, None] % 2 == 0
        scalars = torch.tensor([0.5]).bfloat16(), torch.tensor([1.25]).bfloat16()
        out = fused.layer_tail(lib, one, (two, three), (w1, w2, w3), denoise, scalars, 1e-6)
        plain = (one + norm(norm(two, w1) + norm(three, w2), w3)) * torch.where(denoise, *scalars)
        assert_near(out, plain, 2 * CLOSE)

    def test_geglu(self, lib):
        gate, up = some(7, 37, scale=4), some(7, 37, seed=1)
        plain = torch.nn.functional.gelu(gate.float(), approximate="tanh") * up.float()
        assert_near(fused.geglu(lib, gate, up), plain)
        edges = torch.tensor([-1e30, -60.0, -0.0, 0.0, 60.0, 1e30]).bfloat16()
        assert fused.geglu(lib, edges, torch.ones_like(edges)).tolist() == [0, 0, 0, 0, *edges[-2:].tolist()]

    @pytest.mark.parametrize(("n", "experts", "k"), [(1, 4, 2), (6, 7, 7), (33, 32, 4)])
    def test_router(self, lib, tiny_router, n, experts, k):
        router = tiny_router(experts, k)
        h = some(n, 50)
        with torch.enable_grad():  # which keeps the kernel away
            weights, chosen, _ = router(h)
        mine, ids = fused.router(lib, h, router.scale, router.proj.weight, router.per_expert_scale, k, 1e-6)
        assert torch.equal(ids, chosen)
        torch.testing.assert_close(mine, weights.detach(), rtol=1e-5, atol=1e-6)  # all in float32

    def test_router_takes_the_lower_of_equal_experts_once(self, lib):
        ones = torch.ones(4, 16).bfloat16()
        _, ids = fused.router(lib, some(3, 16), ones[0], ones, ones[:, 0].contiguous(), 3, 1e-6)
        assert ids.tolist() == [[0, 1, 2]] * 3

    @pytest.mark.parametrize(
        ("n", "size", "width", "count", "k"),
        [(1, 32, 16, 4, 2), (3, 50, 18, 2, 2), (40, 48, 12, 3, 1), (61, 96, 70, 5, 4), (64, 64, 32, 16, 2)],
    )
    def test_experts(self, lib, n, size, width, count, k):
        experts = torch.nn.Module.__new__(Experts)
        torch.nn.Module.__init__(experts)
        experts.gate_up_proj = torch.nn.Parameter(some(count, 2 * width, size, seed=1, scale=size**-0.5))
        experts.down_proj = torch.nn.Parameter(some(count, size, width, seed=2, scale=width**-0.5))
        x, weights = some(n, size), torch.rand(n, k)
        chosen = torch.stack([torch.randperm(count)[:k] for _ in range(n)])
        with torch.enable_grad():
            plain = experts(x, weights, chosen).detach()
        mine = fused.experts(lib, x, weights, chosen, experts.gate_up_proj, experts.down_proj)
        assert_near(mine, plain, 2 * CLOSE)

    @pytest.mark.parametrize("n", [1, 2, 3, 4])
    @pytest.mark.parametrize(("size", "out"), [(32, 64), (50, 7), (768, 130)])
    def test_few_rows(self, lib, n, size, out):
        x, weight = some(n, size), some(out, size, seed=1, scale=size**-0.5)
        assert_near(fused.few_rows(lib, x, weight), x.float() @ weight.float().T)

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
    def test_attention(self, lib, n, heads, groups, dim, seen, window):
        queries = some(n, heads, dim, scale=3 * dim**-0.5)
        keys, values = (some(groups, seen + 9, dim, seed=s)[:, 4 : seen + 4] for s in (1, 2))
        mask = causal_mask(n, seen, window, queries.device) if window else None
        plain = attend_grouped(queries.float(), keys.float(), values.float(), mask)
        assert_near(fused.attention(lib, queries, keys, values, window), plain, 2 * CLOSE)


@needs_kernels
class TestVocabulary:
    """z is the reference's bit for bit, exp is good to 1e-7, sums are float64: only products that round differently
    remain, and here they do not round: multiples of 1/4 and 1/8 in few dimensions."""

    @pytest.mark.parametrize("temperature", [0.05, 0.4, 0.8, 3.0])
    @pytest.mark.parametrize(("vocab", "spread"), [(5000, 1), (4096, 8), (1027, 16), (1027, 0)])
    def test_sweep(self, lib, vocab, spread, temperature):
        generator = torch.Generator().manual_seed(vocab)
        hidden = (torch.randint(-spread, spread + 1, (70, 8), generator=generator) / 4).bfloat16()
        embedding = (torch.randint(-8, 9, (vocab, 8), generator=generator) / 8).bfloat16()
        uniforms = torch.rand(70, dtype=torch.float64, generator=generator)
        options = {"cap": 30.0, "temperature": temperature, "uniforms": uniforms, "want_soft": True}
        mine = swept.vocab_head(lib, hidden, embedding, **options)
        plain = vocab_head_reference(hidden, embedding, **options)
        torch.testing.assert_close(mine.logsumexp, plain.logsumexp, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mine.entropy, plain.entropy, rtol=1e-5, atol=1e-15)
        assert torch.equal(mine.argmax, plain.argmax)
        assert float((mine.soft - plain.soft).abs().max()) <= CLOSE  # of embeddings of size 1
        z = 30.0 * torch.tanh((hidden @ embedding.T).float() / 30.0) / temperature
        cdf = torch.softmax(z.double(), -1).cumsum(-1)
        for row in (mine.sample != plain.sample).nonzero()[:, 0].tolist():
            low, high = sorted((int(mine.sample[row]), int(plain.sample[row])))
            assert bool(((cdf[row, low:high] - uniforms[row]).abs() < 1e-6).all()), "samples differ without a tie"

    @pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-53])
    def test_extreme_uniforms_give_an_id_with_mass(self, lib, uniform):
        hidden, embedding = torch.full((70, 4), 9.0).bfloat16(), torch.full((3000, 4), -9.0).bfloat16()
        embedding[[77, 2222]] = 9.0
        uniforms = torch.full((70,), uniform, dtype=torch.float64)
        found = swept.vocab_head(
            lib, hidden, embedding, cap=30.0, temperature=0.02, uniforms=uniforms, want_soft=False
        ).sample
        assert set(found.tolist()) == {77 if uniform == 0 else 2222}

    def test_serves_behind_the_public_name(self, lib):
        hidden, embedding = some(64, 16), some(2048, 16, seed=1)
        options = {"cap": 30.0, "temperature": 0.6}
        plain = swept.vocab_head(lib, hidden, embedding, uniforms=None, want_soft=True, **options)
        assert torch.equal(tiled.vocab_head(hidden, embedding, want_soft=True, **options).soft, plain.soft)


def test_training_and_float32_keep_to_torch():
    x = some(4, 16)
    assert fused.serving(x) is None  # gradients are on
    with torch.no_grad():
        assert fused.serving(x.float()) is None
        assert fused.serving(x, x.float()) is None
        assert fused.serving(x.T) is None


@pytest.mark.parametrize(
    ("change", "word"), [({"SCUMBLE_NATIVE": "0"}, "switched off"), ({"PATH": "", "CXX": ""}, "no C++ compiler")]
)
def test_torch_serves_and_the_log_says_so_once(change, word):
    code = (
        "import logging; logging.basicConfig(level='INFO')\n"
        "from scumble.kernels import native\n"
        "native.processor_features = lambda: frozenset(native.NEEDED)\n"
        "assert native.library() is None and native.library() is None"
    )
    found = subprocess.run([sys.executable, "-c", code], env=os.environ | change, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stderr.count(word) == 1


@needs_kernels
def test_processes_that_start_together_build_one_binary(tmp_path):
    code = "from scumble.kernels import native; assert native.library() is not None"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    running = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    made = sorted(path.name for path in (tmp_path / "scumble" / "native").iterdir())
    assert len(made) == 2
    assert made[0].startswith("kernels-")


@pytest.fixture
def tiny_router():
    def make(experts: int, k: int) -> Router:
        router = torch.nn.Module.__new__(Router)
        torch.nn.Module.__init__(router)
        router.scale = torch.nn.Parameter(1 + some(50, seed=3, scale=0.1))
        router.per_expert_scale = torch.nn.Parameter(1 + some(experts, seed=4, scale=0.1))
        router.proj = torch.nn.Linear(50, experts, bias=False)
        router.proj.weight = torch.nn.Parameter(some(experts, 50, seed=5))
        router.top_k, router.eps = k, 1e-6
        return router

    return make

"""The operations of mixed-precision training against plain torch in float32: values and gradients, on odd sizes.

Tolerances: what goes in and what comes out is bfloat16 (relative error 2⁻⁹ a number); inside it is float32. So a result
is within about half a percent, as a vector, of what float32 gives for the same numbers.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from scumble.checkpoint import load_checkpoint
from scumble.evaluate.functions import read_functions
from scumble.llm import embedded_path
from scumble.ops import REFERENCE
from scumble.ops.cpu import native
from scumble.ops.cpu.training import chains as training
from scumble.ops.cpu.training import experts as training_experts
from scumble.ops.cpu.training import products
from scumble.ops.reference import apply_rope, causal_mask
from scumble.ops.training import PLAIN_TRAINING
from scumble.text import Tokenizer
from scumble.train import objective as objective_module
from scumble.train.config import Objective
from scumble.train.precision import choose_training, precision, training_ops

LIB = native.library()
needs_kernels = pytest.mark.skipif(LIB is None, reason="no compiler, or a processor without AVX2")
NARROW, WIDE = torch.bfloat16, torch.float32


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = NARROW) -> torch.Tensor:
    """Random numbers that bfloat16 can hold, in `dtype`, that want a gradient."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()
    return values.to(dtype).requires_grad_()


def close(found: torch.Tensor, wanted: torch.Tensor, most: float = 0.006) -> None:
    gap = (found.detach().float() - wanted.detach().float()).norm() / wanted.detach().float().norm().clamp_min(1e-9)
    assert float(gap) <= most, f"relative error {float(gap):.4f}"


def compare(fast, plain, inputs, most: float = 0.006) -> None:
    """Both functions of the same tensors: the plain one gets them in float32. Values, then every gradient."""
    wide = [x.detach().float().requires_grad_(x.requires_grad) if x.is_floating_point() else x for x in inputs]
    found, wanted = fast(*inputs), plain(*wide)
    close(found, wanted, most)
    direction = numbers(*wanted.shape, seed=99).detach()
    found.backward(direction.to(found.dtype))
    wanted.backward(direction.float())
    for ours, theirs in zip(inputs, wide, strict=True):
        if theirs.requires_grad:
            assert ours.grad.dtype is ours.dtype
            close(ours.grad, theirs.grad, 2 * most)


def rms(x, weight, eps=1e-6):
    out = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    return out if weight is None else out * weight


@given(st.integers(0, 5000))
def test_blocks_cover_all_rows_once_in_few_sizes(rows):
    parts = list(products.blocks(rows))
    assert [begin for begin, _ in parts] + [rows] == [0] + [end for _, end in parts]
    assert {end - begin for begin, end in parts[:-1]} <= set(products.SIZES)
    assert len(parts) <= rows // products.SIZES[0] + 4


@pytest.mark.parametrize("rows", [1, 63, 64, 200, 1500])
def test_a_linear_layer_in_blocks(rows):
    compare(training.linear, lambda x, w: x @ w.T, [numbers(rows, 24), numbers(10, 24, seed=1, dtype=WIDE)])


@needs_kernels
class TestSweeps:
    @pytest.mark.parametrize("weighted", [True, False])
    @pytest.mark.parametrize(("dtype", "out"), [(NARROW, NARROW), (WIDE, NARROW), (WIDE, WIDE), (NARROW, WIDE)])
    def test_norm(self, dtype, out, weighted):
        weight = numbers(37, seed=1, dtype=WIDE) if weighted else None
        inputs = [numbers(50, 37, dtype=dtype)] + ([weight] if weighted else [])
        compare(lambda x, w=None: training.norm(LIB, x, w, 1e-6, out), lambda x, w=None: rms(x, w), inputs)

    @pytest.mark.parametrize("scaled", [True, False])
    def test_residual_plus_norm(self, scaled):
        scale = numbers(50, 1, seed=3, dtype=WIDE).detach() if scaled else None
        compare(
            lambda x, y, w: training.add_norm(LIB, x, y, w, 1e-6, scale),
            lambda x, y, w: (x + rms(y, w)) * (1.0 if scale is None else scale),
            [numbers(50, 37, dtype=WIDE), numbers(50, 37, seed=1), numbers(37, seed=2, dtype=WIDE)],
        )

    def test_norm_and_rotary_positions(self):
        angles = torch.arange(40.0)[:, None, None] * torch.rand(11, generator=torch.Generator().manual_seed(5))
        angles = torch.cat((angles, angles), -1)
        cos, sin = angles.cos(), angles.sin()
        compare(
            lambda x, w: training.norm_rope(LIB, x, w, cos, sin, 1e-6),
            lambda x, w: apply_rope(rms(x, w), cos, sin),
            [numbers(40, 3, 22), numbers(22, seed=1, dtype=WIDE)],
        )

    def test_gates(self):
        compare(
            lambda gate, up: training.geglu(LIB, gate, up),
            lambda gate, up: F.gelu(gate, approximate="tanh") * up,
            [numbers(30, 21), numbers(30, 21, seed=1)],
        )

    @pytest.mark.parametrize("tokens", [3, 150])
    def test_experts_of_which_some_are_chosen_by_nobody(self, tokens):
        chosen = torch.randint(0, 5, (tokens, 1), generator=torch.Generator().manual_seed(1))
        chosen = torch.cat((chosen, (chosen + 1) % 5), 1)  # 6 experts: the last has no token
        weights = numbers(tokens, 2, seed=2, dtype=WIDE).detach().abs().requires_grad_()
        compare(
            lambda x, w, up, down: training_experts.experts(LIB, x, w, chosen, up, down),
            lambda x, w, up, down: REFERENCE.grouped(x, w, chosen, 6, lambda e: (up[e], down[e])),
            [
                numbers(tokens, 20),
                weights,
                numbers(6, 28, 20, seed=3, dtype=WIDE),
                numbers(6, 20, 14, seed=4, dtype=WIDE),
            ],
            most=0.012,  # three products, with a rounding after each
        )

    @pytest.mark.parametrize(
        ("tokens", "seen", "window"), [(1, 1, 0), (7, 90, 0), (70, 70, 70), (131, 131, 40), (50, 90, 33)]
    )
    def test_attention(self, tokens, seen, window):
        def plain(q, k, v):
            mask = causal_mask(tokens, seen, window, q.device) if window else None
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0, enable_gqa=True).transpose(1, 2)

        inputs = [numbers(2, tokens, 4, 20), numbers(2, seen, 2, 20, seed=1), numbers(2, seen, 2, 20, seed=2)]
        compare(
            lambda q, k, v: training.attention(LIB, q * 0.3, k, v, window), lambda q, k, v: plain(q * 0.3, k, v), inputs
        )

    @pytest.mark.parametrize("cap", [5.0, 30.0])
    def test_cross_entropy_behind_the_soft_cap(self, cap):
        targets = torch.randint(0, 83, (40,), generator=torch.Generator().manual_seed(1))
        weights = torch.rand(40, generator=torch.Generator().manual_seed(2)) * (torch.arange(40) % 5 > 0)
        logits = (numbers(40, 83).detach() * 8).requires_grad_()
        wide = logits.detach().float().requires_grad_()
        wanted = F.cross_entropy(cap * torch.tanh(wide / cap), targets, reduction="none")
        (wanted * weights).sum().backward()
        gradient = logits.detach().clone()
        found = training.cross_entropy(LIB, gradient, targets, weights, cap)
        torch.testing.assert_close(found, wanted.detach() * (weights > 0), rtol=1e-4, atol=1e-4)
        close(gradient, wide.grad)

    def test_logits_at_the_cap_give_numbers(self):
        logits = torch.tensor([[1e4, -1e4, 0.0]], dtype=NARROW)
        loss = training.cross_entropy(LIB, logits, torch.tensor([1]), torch.ones(1), training.LARGEST_CAP)
        assert float(loss) == pytest.approx(2 * training.LARGEST_CAP, rel=1e-5)
        assert bool(torch.isfinite(logits).all())

    @pytest.mark.parametrize("threads", [1, 2])
    def test_the_same_bits_every_time(self, threads):
        def once():
            x, weight = numbers(3000, 33, dtype=WIDE), numbers(33, seed=1, dtype=WIDE)
            training.norm(LIB, x, weight, 1e-6, WIDE).backward(numbers(3000, 33, seed=2, dtype=WIDE).detach())
            return x.grad, weight.grad

        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            first, second = once(), once()
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def gradients(model, ids, causal_only: bool, mixed: bool = True, ops=None) -> tuple[list[float], torch.Tensor]:
    """Losses of a batch of texts of one length, and all gradients in a row."""
    model.zero_grad()
    own, generator = Objective(self_conditioning=1.0), torch.Generator().manual_seed(3)
    lengths = torch.full((len(ids),), ids.shape[1])
    with precision(model, mixed, ops):
        found = objective_module.losses(model, ids, lengths, 8, 16, own, generator, causal_only=causal_only)
    found.total.backward()
    return [found.causal, found.denoise], torch.cat(
        [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    )


class Routes:
    """Remembers to which experts a model's routers send the tokens of a step, and sends them there again."""

    def __init__(self, model):
        self.seen: list[torch.Tensor] = []
        self.queue: list[torch.Tensor] | None = None
        for layer in model.layers:
            layer.router.register_forward_hook(self.hook)

    def replay(self) -> None:
        self.queue = list(self.seen)

    def hook(self, router, inputs, output):
        _, experts, probabilities = output
        if self.queue is None:
            self.seen.append(experts)
            return None
        experts = self.queue.pop(0)
        weights = probabilities.gather(-1, experts)
        weights = weights / weights.sum(-1, keepdim=True) * router.per_expert_scale[experts]
        return weights, experts, probabilities


@needs_kernels
@pytest.mark.parametrize("causal_only", [True, False])
def test_a_whole_step_is_as_near_to_float32_as_the_plain_path(causal_only):
    """Two roundings of one arithmetic, on trained weights. All three send every token to the experts that it has in
    float32: to which of two a rounded score sends it is chance, and would be most of either's distance."""
    model = load_checkpoint(embedded_path(), torch.float32).requires_grad_(True)
    tokenizer = Tokenizer.from_folder(embedded_path())
    texts = [tokenizer.encode(function.text) for function in read_functions()[:12]]
    ids = torch.tensor([[2, *text[:71]] for text in texts if len(text) >= 71])
    routes = Routes(model)
    exact = gradients(model, ids, causal_only, mixed=False)
    routes.replay()
    fast = gradients(model, ids, causal_only)
    routes.replay()
    plain = gradients(model, ids, causal_only, ops=PLAIN_TRAINING)
    assert fast[0] == pytest.approx(exact[0], rel=3e-3)
    gaps = [float((side[1] - exact[1]).norm() / exact[1].norm()) for side in (fast, plain)]
    assert gaps[0] <= 1.1 * gaps[1] <= 0.015, gaps


def test_kernels_serve_mixed_precision_alone(monkeypatch):
    cpu = torch.device("cpu")
    assert choose_training(cpu, bfloat16=False) is PLAIN_TRAINING
    assert (choose_training(cpu, bfloat16=True) is PLAIN_TRAINING) is (LIB is None)
    monkeypatch.setenv("SCUMBLE_OPS", "reference")
    assert choose_training(cpu, bfloat16=True) is PLAIN_TRAINING


def test_the_model_s_own_operations_come_back():
    model = load_checkpoint(embedded_path(), torch.float32)
    before = model.ops
    with precision(model, bfloat16=True):
        assert model.layers[0].mlp.ops is model.ops is training_ops(model)
    assert model.layers[0].mlp.ops is model.ops is before

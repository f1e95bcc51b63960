"""int4: what rounding keeps, the kernel against plain torch, and both against the float model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble import LLM, GenerationConfig
from scumble.formats import int4
from scumble.formats.int4 import Int4Matrix
from scumble.formats.int4_weights import Int4Experts
from scumble.formats.sizes import FORMATS, weight_bytes
from scumble.ops import REFERENCE, choose
from scumble.ops.cpu import native
from tiny import prompt, save_folder, tiny_model

needs_kernels = pytest.mark.skipif(native.library() is None, reason="no compiler, or a processor without AVX2")


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def any_matrix(
    seed: int, rows: int, groups: int, group: int, scales: torch.dtype, zeros: bool, fp4: bool
) -> Int4Matrix:
    random = torch.Generator().manual_seed(seed)
    packed = torch.randint(0, 256, (rows, groups * group // 2), dtype=torch.uint8, generator=random)
    scale = (torch.rand(rows, groups, generator=random) + 0.1).to(scales)
    zero = torch.randint(0, 16, (rows, groups), generator=random).float() if zeros else None
    factor = torch.tensor([0.37]) if fp4 else None
    return Int4Matrix(packed, scale, groups * group, group, zero, fp4, factor)


@given(st.integers(1, 100), st.floats(1e-6, 1e6), st.sampled_from([8, 32, 128]))
@settings(deadline=None, max_examples=30)
def test_rounding_keeps_every_number_to_half_a_step(size, magnitude, group):
    """A step is an eighth of the group's largest magnitude; at the far end, where there is no +8, a whole one."""
    x = some(3, size, seed=size) * magnitude
    back = int4.quantize(x, group).numbers()
    for start in range(0, size, group):
        part = slice(start, start + group)
        most = x[:, part].abs().amax(-1, keepdim=True)
        error = (back[:, part] - x[:, part]).abs()
        near_the_end = x[:, part].abs() > most * 7.5 / 8
        assert bool((error <= most / 8 * torch.where(near_the_end, 1.02, 0.53)).all())


@needs_kernels
@given(st.integers(1, 40), st.integers(1, 5), st.sampled_from([16, 32, 64, 704]), st.integers(0, 2**20))
@settings(deadline=None, max_examples=30)
def test_kernel_and_torch_round_to_the_same_bits(rows, groups, group, seed):
    x = (some(rows, groups * group, seed=seed) * some(rows, 1, seed=seed + 1).exp()).bfloat16()
    x[0] = 0
    fast, plain = (int4.quantize(x, group, native=native) for native in (True, False))
    assert torch.equal(fast.packed, plain.packed)
    assert torch.equal(fast.scale, plain.scale)


def test_zeros_stay_zeros():
    assert not int4.quantize(torch.zeros(2, 40)).numbers().any()


@needs_kernels
@given(
    seed=st.integers(0, 2**20), n=st.integers(1, 20), rows=st.integers(1, 150), groups=st.integers(1, 12),
    group=st.sampled_from([8, 16, 32, 64, 96, 128, 704]), scales=st.sampled_from(list(int4.SCALES)),
    zeros=st.booleans(), fp4=st.booleans(),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_kernel_and_torch_give_the_same_product(seed, n, rows, groups, group, scales, zeros, fp4):
    matrix = any_matrix(seed, rows, groups, group, scales, zeros and not fp4, fp4)
    x = some(n, matrix.size, seed=seed).bfloat16()
    fast, plain = (matrix.product(x, native=native).float() for native in (True, False))
    assert matrix.has_kernel()
    # Both are rounded to bfloat16 (2⁻⁹), and a float32 sum of up to 144 groups may end on the other side.
    torch.testing.assert_close(fast, plain, rtol=0.01, atol=0.002 * float(plain.abs().max()))


@needs_kernels
@pytest.mark.parametrize("n", [2, 6, 7, 13, 40])
@pytest.mark.parametrize("zeros", [False, True])
def test_a_rows_product_does_not_depend_on_how_many_rows_there_are(n, zeros):
    matrix = any_matrix(1, 150, 10, 32, torch.bfloat16, zeros, False)
    x = some(n, matrix.size).bfloat16()
    alone = torch.cat([matrix.product(row[None]) for row in x])
    assert torch.equal(matrix.product(x), alone)


@needs_kernels
@pytest.mark.parametrize(("hidden", "width"), [(64, 32), (40, 24), (96, 160)])
@pytest.mark.parametrize("n", [1, 9, 70])
def test_experts_of_the_kernel_are_those_of_torch(hidden, width, n):
    gate_up, down = some(4, 2 * width, hidden, seed=1), some(4, hidden, width, seed=2)
    x, weights = some(n, hidden).bfloat16(), torch.rand(n, 2, generator=torch.Generator().manual_seed(3))
    chosen = torch.stack([torch.randperm(4, generator=torch.Generator().manual_seed(i))[:2] for i in range(n)])
    plain = Int4Experts(gate_up, down, REFERENCE)
    fast = Int4Experts(gate_up, down, choose("cpu", torch.bfloat16, None, "cpu").ops)  # type: ignore[arg-type]
    assert fast.matrices.serves
    expected = plain(x, weights, chosen).float()
    # Where a hidden number lies between two steps of int8, the two may round it to either.
    torch.testing.assert_close(fast(x, weights, chosen).float(), expected, rtol=0.02, atol=0.01 * expected.abs().max())
    alone = torch.cat([fast(x[i : i + 1], weights[i : i + 1], chosen[i : i + 1]) for i in range(n)])
    assert torch.equal(fast(x, weights, chosen), alone)


def test_a_model_of_four_bits_is_that_of_its_rounded_weights():
    """Swapping modules changes weights and rounds activations, nothing else: the float model with the same weights
    gives nearly the same logits."""
    small, rounded = (tiny_model(dtype=torch.bfloat16) for _ in range(2))
    with torch.no_grad():
        for name, weight in rounded.named_parameters():
            if "_proj" in name:
                matrices = weight if weight.ndim == 3 else weight[None]
                weight.copy_(torch.stack([int4.quantize(one).numbers() for one in matrices]).view(weight.shape))
    small.convert("int4")
    canvas, logits = torch.tensor(prompt(8, seed=5)), []
    for model in (rounded, small):
        cache = model.new_cache()
        model.encode(torch.tensor(prompt(12)), cache)
        logits.append(model.denoise_logits(canvas, cache))
    # int8 activations: about 1 % of a logit's spread a layer
    assert float((logits[0] - logits[1]).norm() / logits[0].norm()) < 0.08


def test_same_seed_same_tokens_alone_and_in_a_batch(tmp_path):
    llm = LLM.load(save_folder(tmp_path / "model", tiny_model(dtype=torch.bfloat16)), dtype="int4")
    config = GenerationConfig(max_new_tokens=12, seed=3, max_denoising_steps=4)
    alone = [llm.generate_ids(prompt(n), config).token_ids for n in (5, 9)]
    assert [answer.token_ids for answer in llm.generate_ids([prompt(5), prompt(9)], config)] == alone
    greedy = GenerationConfig(max_new_tokens=5, decoder="autoregressive")
    assert llm.generate_ids(prompt(5), greedy).token_ids == llm.generate_ids(prompt(5), greedy).token_ids


@needs_kernels
def test_sizes_are_those_of_the_loaded_weights():
    """What `info` and `bench` state, against the tensors that a quantized model holds."""
    model = tiny_model(dtype=torch.bfloat16, hidden_size=64, intermediate_size=64, moe_intermediate_size=32)
    model.use(choose("cpu", torch.bfloat16, model.config).ops)
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert weight_bytes(shapes, "bfloat16") == sum(weight.nbytes for weight in model.parameters())
    model.convert("int4")
    assert weight_bytes(shapes, "int4") == pytest.approx(model.nbytes, rel=0.15)  # the head's panels are padded
    sizes = [weight_bytes(shapes, form) for form in FORMATS]
    assert sizes == sorted(sizes, reverse=True)


def test_no_copy_of_the_weights_is_made_to_answer(monkeypatch):
    """Plain tensors of a format (`state`) are for saving. Of the released model they would take ten gigabytes."""

    def refuse(self):
        raise AssertionError("the experts were copied")

    model = tiny_model(dtype=torch.bfloat16)
    model.convert("int4")
    monkeypatch.setattr(Int4Experts, "state", refuse)
    llm = LLM(model)
    assert llm.generate_ids(prompt(5), GenerationConfig(max_new_tokens=4, seed=0)).token_ids

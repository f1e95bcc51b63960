"""int4: what packing keeps, the kernel against plain torch to the bit, and both against the float model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble import LLM, GenerationConfig
from scumble.formats import int4
from scumble.formats.int4_weights import Int4Experts
from scumble.formats.sizes import FORMATS, weight_bytes
from scumble.ops import REFERENCE
from scumble.ops.cpu import native
from tiny import prompt, save_folder, tiny_model

needs_kernels = pytest.mark.skipif(native.library() is None, reason="no compiler, or a processor without AVX-512")


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 100), st.floats(1e-6, 1e6))
@settings(deadline=None, max_examples=30)
def test_packing_keeps_every_number_to_half_a_step(size, magnitude):
    """A step is an eighth of the group's largest magnitude; at the far end, where there is no +8, a whole one."""
    x = some(3, size, seed=size) * magnitude
    back = int4.unpack(*int4.quantize(x), size, native=False).float()
    for start in range(0, size, int4.GROUP):
        part = slice(start, start + int4.GROUP)
        most = x[:, part].abs().amax(-1, keepdim=True)
        error = (back[:, part] - x[:, part]).abs()
        near_the_end = x[:, part].abs() > most * 7.5 / 8
        assert bool((error <= most / 8 * torch.where(near_the_end, 1.02, 0.53)).all())


def test_zeros_stay_zeros():
    assert not int4.unpack(*int4.quantize(torch.zeros(2, 40)), 40).any()


@needs_kernels
@pytest.mark.parametrize("shape", [(1, 1), (3, 31), (5, 32), (7, 33), (4, 6, 100), (70, 768)])
def test_kernel_and_torch_unpack_the_same_bits(shape):
    packed, scale = int4.quantize(some(*shape))
    fast, plain = (int4.unpack(packed, scale, shape[-1], native=native) for native in (True, False))
    assert fast.shape == shape
    assert torch.equal(fast, plain)


def test_experts_are_those_of_the_unpacked_weights():
    gate_up, down = some(4, 48, 40, seed=1), some(4, 40, 24, seed=2)
    x, weights, chosen = some(9, 40).bfloat16(), torch.rand(9, 2), torch.randint(4, (9, 2))
    experts = Int4Experts(gate_up, down, REFERENCE)
    up, low = experts.up(), experts.down()
    assert torch.equal(experts(x, weights, chosen), REFERENCE.grouped(x, weights, chosen, 4, lambda e: (up[e], low[e])))


def test_a_model_of_four_bits_is_that_of_its_unpacked_weights():
    """Swapping modules changes weights and nothing else: the float model with rounded weights gives the same logits."""
    small, rounded = (tiny_model(dtype=torch.bfloat16) for _ in range(2))
    with torch.no_grad():
        for name, weight in rounded.named_parameters():
            if "_proj" in name:
                weight.copy_(int4.unpack(*int4.quantize(weight), weight.shape[-1]))
    small.convert("int4")
    canvas, logits = torch.tensor(prompt(8, seed=5)), []
    for model in (rounded, small):
        cache = model.new_cache()
        model.encode(torch.tensor(prompt(12)), cache)
        logits.append(model.denoise_logits(canvas, cache))
    torch.testing.assert_close(*logits, rtol=0.01, atol=0.01)  # a bfloat16 step; with the same kernels they are equal


def test_same_seed_same_tokens_alone_and_in_a_batch(tmp_path):
    llm = LLM.load(save_folder(tmp_path / "model", tiny_model(dtype=torch.bfloat16)), dtype="int4")
    config = GenerationConfig(max_new_tokens=12, seed=3, max_denoising_steps=4)
    alone = [llm.generate_ids(prompt(n), config).token_ids for n in (5, 9)]
    assert [answer.token_ids for answer in llm.generate_ids([prompt(5), prompt(9)], config)] == alone
    greedy = GenerationConfig(max_new_tokens=5, decoder="autoregressive")
    assert llm.generate_ids(prompt(5), greedy).token_ids == llm.generate_ids(prompt(5), greedy).token_ids


SCALARS = 3 * 2 * 2  # two layer scalars a layer, bfloat16: no parameters


def test_sizes_are_those_of_the_loaded_weights():
    """What `info` and `bench` state, against the tensors that a quantized model holds."""
    model = tiny_model(dtype=torch.bfloat16, hidden_size=64, intermediate_size=64, moe_intermediate_size=32)
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert weight_bytes(shapes, "bfloat16") == sum(weight.nbytes for weight in model.parameters())
    assert weight_bytes(shapes, "int4") == model.convert("int4").nbytes - SCALARS
    sizes = [weight_bytes(shapes, form) for form in FORMATS]
    assert sizes == sorted(sizes, reverse=True)

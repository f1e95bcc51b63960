"""Keys and values in eight bits: how near they are, that the cut of a text makes no difference, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble import LLM, GenerationConfig, InvalidRequest
from scumble.checkpoint import load_checkpoint
from scumble.model import Segment
from scumble.model.cache import RoundedLayer
from scumble.model.rounding import Room, cache_format, make_whole, rounded, token_bytes
from scumble.ops import REFERENCE, ReferenceOps, choose
from tiny import prompt, save_folder, tiny_model

FORMS = ["int8", "fp8"]
DTYPES = [torch.float32, torch.bfloat16]
CPU = torch.device("cpu")
L = 8


def model_in(form, dtype=torch.float32, **shape):
    model = tiny_model(dtype=dtype, **shape)
    model.cache_format = form
    return model


def layer_of(form, keep=None, dtype=torch.float32):
    return RoundedLayer(2, 16, keep, dtype, CPU, form)


@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_is_off_by_half_a_step_of_its_own_token_and_head(dtype):
    x = (torch.randn(50, 2, 16) * torch.logspace(-4, 3, 50)[:, None, None]).to(dtype)
    numbers, scales = rounded(x, "int8")
    out = torch.empty_like(x)
    make_whole(out, numbers, scales, "int8")
    step = x.float().abs().amax(-1, keepdim=True) / 127
    slack = 0.5001 if dtype is torch.float32 else 0.5 + 127 / 2**7  # the product is rounded to bfloat16's eight bits
    assert ((out.float() - x.float()).abs() <= slack * step).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_fp8_keeps_four_bits_of_every_number(dtype):
    x = torch.randn(50, 2, 16).to(dtype)
    numbers, scales = rounded(x, "fp8")
    out = torch.empty_like(x)
    make_whole(out, numbers, scales, "fp8")
    least = x.float().abs().amax(-1, keepdim=True) * 2.0**-15  # below it numbers are a multiple of the least one
    torch.testing.assert_close(out.float(), x.float(), rtol=2**-4 + 2**-7, atol=float(least.max()))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
def test_every_fp8_number_is_made_whole_as_torch_does_it(dtype):
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    numbers = numbers[torch.isfinite(numbers.float())]
    out = torch.empty(numbers.shape, dtype=dtype)
    make_whole(out, numbers, torch.ones(1, dtype=dtype), "fp8")
    assert torch.equal(out, numbers.to(dtype))
    assert torch.equal(out.signbit(), numbers.to(dtype).signbit())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_a_number_is_still_none_when_it_is_read(form, value):
    layer, keys = layer_of(form), torch.randn(3, 2, 16)
    keys[1, 0, 5] = value
    seen, values = layer.append(keys, torch.zeros(3, 2, 16), Room())
    assert not torch.isfinite(seen[0, 1]).all()
    assert torch.isfinite(seen[1]).all()
    assert not values.any()  # a token of zeros has a scale too


@given(st.sampled_from(FORMS), st.sampled_from([None, 7]), st.lists(st.integers(1, 9), min_size=1, max_size=6))
@settings(deadline=None, max_examples=30)
def test_what_is_seen_does_not_depend_on_how_a_text_was_cut(form, keep, pieces):
    total, room = sum(pieces), Room()
    keys, values, own = torch.randn(total, 2, 16), torch.randn(total, 2, 16), torch.randn(4, 2, 16)
    whole, cut = layer_of(form, keep), layer_of(form, keep)
    whole.append(keys, values, room)
    for k, v in zip(keys.split(pieces), values.split(pieces), strict=True):
        cut.beside(own, own, room)
        cut.read(own, own, room)
        cut.append(k, v, room)
    expected = [part.clone() for part in whole.beside(own, own, room)]
    for one, two in zip(expected, cut.beside(own, own, room), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(expected[0][:, -4:], own.transpose(0, 1))  # a canvas's own keys are not rounded


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_reading_gives_what_encoding_gives_and_denoising_leaves_the_cache_as_it_was(form, dtype):
    model = model_in(form, dtype)
    cache, ids = model.new_cache(), torch.tensor(prompt(20, 4))
    model.encode(torch.tensor(prompt(19)), cache)

    def held():
        return [part[:, layer.start : layer.end].clone() for layer in cache.layers for part in layer.parts]

    before = held()
    read = model([Segment(ids, cache, "read")])
    for _ in range(5):  # often enough that buffers grow and move
        model.denoise_logits(torch.tensor(prompt(L)), cache)
    assert cache.length == 19
    assert all(
        torch.equal(old.view(torch.uint8), new.view(torch.uint8)) for old, new in zip(before, held(), strict=True)
    )
    assert torch.equal(model.encode(ids, cache), read)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_with_invariant_operations_a_text_in_any_pieces_and_company_gives_the_same_bits(form):
    """Token by token too: a full cache's quicker way through a layer (model/step.py) is not taken."""
    model = model_in(form, torch.bfloat16, hidden_size=64, intermediate_size=64, moe_intermediate_size=32)
    model.use(choose("cpu", torch.bfloat16, model.config).ops)
    if not model.ops.batch_invariant:
        pytest.skip("no batch-invariant operations on this machine")
    ids, canvas, found = torch.tensor(prompt(37)), torch.tensor(prompt(L, 3)), []
    for sizes in ([37], [1] * 37, [5, 1, 7, 4, 20], [36, 1]):
        cache, other = model.new_cache(), model.new_cache()
        states = []
        for piece in ids.split(sizes):
            company = Segment(torch.tensor(prompt(3, len(states))), other, "encode")
            states.append(model([Segment(piece, cache, "encode"), company])[: len(piece)])
        found.append((torch.cat(states), model([Segment(canvas, cache, "denoise")])))
    for states, denoised in found[1:]:
        assert torch.equal(states, found[0][0])
        assert torch.equal(denoised, found[0][1])


@pytest.mark.parametrize(("form", "most"), [("int8", 0.06), ("fp8", 0.6)])
def test_logits_stay_near_those_of_the_full_cache(form, most):
    """Logits of this random model spread over ± 10; a wrong scale, head or position moves them by several."""
    ids, canvas = torch.tensor(prompt(60)), torch.tensor(prompt(L, 2))
    found = []
    for model in (tiny_model(), model_in(form)):
        cache = model.new_cache()
        model.encode(ids, cache)
        found.append(model.denoise_logits(canvas, cache).log_softmax(-1))
    kl = (found[0].exp() * (found[0] - found[1])).sum(-1)
    assert 0 < float(kl.mean()) < most


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_cache_takes_what_is_counted_for_it(form, dtype):
    model = model_in(form, dtype, sliding_window=24)
    cache = model.new_cache()
    model.encode(torch.tensor(prompt(100)), cache)
    counted = sum(
        token_bytes(config, dtype.itemsize, form) * layer.keys.shape[1]
        for config, layer in zip(model.config.layers, cache.layers, strict=True)
    )
    assert cache.nbytes() == counted


def test_a_loaded_model_keeps_its_cache_in_eight_bits(tmp_path):
    folder = save_folder(tmp_path, tiny_model())
    config = GenerationConfig(max_new_tokens=20, max_denoising_steps=3, ignore_eos=True)
    llm = LLM.load(folder, cache_dtype="int8")
    assert llm.model.new_cache().layers[0].keys.dtype == torch.int8
    answers = llm.generate_ids([prompt(9), prompt(40, 1)], config)
    assert [llm.generate_ids(ids, config).token_ids for ids in (prompt(9), prompt(40, 1))] == [
        answer.token_ids for answer in answers
    ]


def test_an_unknown_format_is_refused_before_weights_are_read(tmp_path):
    with pytest.raises(InvalidRequest, match="cache_dtype must be None or one of int8, fp8; found 'int4'"):
        load_checkpoint(save_folder(tmp_path, tiny_model()), cache_dtype="int4")


def test_operations_that_keep_pages_refuse_it_and_say_what_to_do():
    class Paged(ReferenceOps):
        name = "triton"
        attends_pages = True

    with pytest.raises(InvalidRequest, match=r"cache_dtype='fp8': the operations 'triton' .* ops='reference'"):
        cache_format("fp8", Paged())
    assert cache_format(None, Paged()) is None
    assert cache_format("fp8", REFERENCE) == "fp8"

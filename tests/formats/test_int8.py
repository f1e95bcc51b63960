"""int8: kernels against plain torch, and both against the float model.

Kernel and torch sum the same integers exactly; what differs is the float32 rounding of two scales and, in the experts,
of gelu, which can move a number across a rounding border of int8 or bfloat16. 2⁻⁷ of a result covers that.
"""

import pytest
import torch

from scumble import LLM, GenerationConfig
from scumble.checkpoint import load_checkpoint, save_checkpoint
from scumble.errors import CheckpointError, InvalidRequest
from scumble.formats import int8
from scumble.formats.int8 import Int8Matrix
from scumble.formats.int8_embedding import Int8Embedding
from scumble.formats.int8_weights import Int8Experts, Int8Weight, apart, interleave
from scumble.ops import REFERENCE, VocabQuery, choose, vocab_head_reference
from scumble.ops.cpu import native
from tiny import prompt, save_folder, tiny_model

CLOSE = 2.0**-7
OPS = {False: REFERENCE, None: choose("cpu", torch.bfloat16).ops}  # by `packed`: plain, and the quickest there are
needs_kernels = pytest.mark.skipif(native.library() is None, reason="no compiler, or a processor without AVX2")


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_quantize_keeps_every_number_to_half_a_step():
    x = torch.cat((some(5, 40), torch.zeros(1, 40)))
    q, scale = int8.quantize(x)
    assert int(q.abs().max()) == 127
    assert bool(((q * scale[:, None] - x).abs() <= scale[:, None] * 0.501).all())


@pytest.mark.parametrize("size", [4, 1024, 5000])
def test_integer_product_is_exact_before_its_last_rounding(size):
    q, w = (torch.randint(-127, 128, (3, size), dtype=torch.int8) for _ in range(2))
    exact = q.long() @ w.long().T
    assert torch.equal(int8.integer_product(q, w), exact.float())


@needs_kernels
@pytest.mark.parametrize(("n", "size", "rows"), [(1, 4, 3), (5, 100, 70), (13, 768, 64), (40, 36, 200)])
def test_matrix_kernel(n, size, rows):
    weight, x = some(rows, size, seed=1), some(n, size).bfloat16()
    fast, plain = Int8Matrix(weight), Int8Matrix(weight, packed=False)
    assert fast.weight is None
    assert plain.weight is not None
    torch.testing.assert_close(fast(x), plain(x), rtol=CLOSE, atol=1e-6)
    q, scale = fast.rounded(x)
    assert torch.equal(fast.product(q, scale, 2, rows - 1), fast(x)[:, 2 : rows - 1])


@pytest.mark.parametrize("packed", [False, None])
def test_state_is_plain_and_makes_the_same_weight_again(packed):
    ops, x = OPS[packed], some(5, 36).bfloat16()
    weight = Int8Weight(some(70, 36, seed=1), ops)
    state = weight.state()
    assert (state["weight"].dtype, state["weight"].shape, state["scale"].shape) == (torch.int8, (70, 36), (70,))
    assert torch.equal(Int8Weight.from_state(state, ops).product(x), weight.product(x))
    plain = Int8Weight(some(70, 36, seed=1), REFERENCE).state()
    assert all(torch.equal(state[name], plain[name]) for name in plain)
    experts = Int8Experts(some(3, 2 * 44, 36, seed=2), some(3, 36, 44, seed=3), ops)
    state = experts.state()
    assert (state["gate_up_proj"].shape, state["down_proj.scale"].shape) == ((3, 88, 36), (3, 36))
    weights, chosen = torch.rand(5, 2), torch.randint(3, (5, 2))
    again = Int8Experts.from_state(state, ops)
    assert torch.equal(again.mix(x, weights, chosen), experts.mix(x, weights, chosen))


@pytest.mark.parametrize("packed", [False, None])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_activation_that_is_no_number_is_not_rounded_to_one(packed, bad):
    """Its row's results are NaN, where the engine's check of outputs finds them; other rows' are not."""
    ops, x = OPS[packed], some(3, 36).bfloat16()
    x[1, 5] = bad
    experts = Int8Experts(some(3, 2 * 44, 36, seed=2), some(3, 36, 44, seed=3), ops)
    found = [Int8Weight(some(70, 36, seed=1), ops).product(x)]
    found.append(experts.mix(x, torch.rand(3, 2), torch.randint(3, (3, 2))))
    table = some(300, 36, seed=4).bfloat16()
    head = Int8Embedding(table, packed=packed)
    found.append(ops.vocab_head(x, table, VocabQuery(), cap=30.0, head=head).entropy[:, None])
    for one in found:
        assert one.isnan().all(-1).tolist() == [False, True, False]


def test_interleave_puts_32_gate_rows_before_their_up_rows():
    x = torch.arange(2 * 40)[None]
    mixed = interleave(x)[0].tolist()
    assert mixed[:64] == [*range(32), *range(40, 72)]
    assert mixed[64:72] == [*range(32, 40)]
    assert mixed[96:104] == [*range(72, 80)]
    assert torch.equal(apart(interleave(x), 40), x)


@needs_kernels
@pytest.mark.parametrize(
    ("n", "size", "width", "count", "k"), [(1, 32, 16, 4, 2), (40, 100, 36, 3, 2), (9, 64, 64, 8, 4)]
)
def test_experts_kernel(n, size, width, count, k):
    gate_up, down = some(count, 2 * width, size, seed=1) / size**0.5, some(count, size, width, seed=2) / width**0.5
    x, weights = some(n, size).bfloat16(), torch.rand(n, k)
    chosen = torch.stack([torch.randperm(count)[:k] for _ in range(n)])
    fast, plain = Int8Experts(gate_up, down, OPS[None]), Int8Experts(gate_up, down, REFERENCE)
    mine, theirs = fast(x, weights, chosen).float(), plain(x, weights, chosen).float()
    assert float((mine - theirs).abs().max()) <= CLOSE * float(theirs.abs().max())


@pytest.mark.parametrize("packed", [False, None])
def test_vocabulary_with_an_int8_head(packed):
    """The operator with an int8 head is the plain operator on the logits that this head gives."""
    hidden, embedding = some(80, 32).bfloat16(), some(1500, 32, seed=1).bfloat16()
    uniforms = torch.rand(80, dtype=torch.float64)
    head = Int8Embedding(embedding, packed=packed)
    query = VocabQuery(0.7, uniforms=uniforms, want_soft=True)
    with torch.no_grad():
        mine = OPS[packed].vocab_head(hidden, embedding, query, cap=30.0, head=head)
        z = 30 * torch.tanh(head(hidden).float() / 30) / 0.7
    cdf = torch.softmax(z.double(), -1).cumsum(-1)
    torch.testing.assert_close(mine.logsumexp, z.logsumexp(-1), rtol=1e-5, atol=1e-5)
    assert torch.equal(mine.argmax, z.argmax(-1))
    torch.testing.assert_close(mine.sample, (cdf > uniforms[:, None]).int().argmax(-1))
    soft = torch.softmax(z, -1) @ embedding.float()
    # With kernels the soft embedding is an int8 product: half a step of the weights and of the table, in the mean.
    tolerance = CLOSE if packed is False else 0.015
    assert float((mine.soft - soft).abs().max()) <= tolerance * float(embedding.abs().max())
    plain = vocab_head_reference(hidden, embedding, query, cap=30.0)
    assert float((mine.logsumexp - plain.logsumexp).abs().max()) < 0.2  # and not far from the float head


@needs_kernels
@pytest.mark.parametrize(
    ("vocab", "sure", "tolerance"), [(5000, 0.0, 0.025), (5000, 20.0, 0.0125), (4099, 1.0, 0.025), (1025, 1.0, 0.05)]
)
def test_soft_embeddings_in_int8_are_near_those_of_the_float_table(vocab, sure, tolerance):
    """From ignorance (mass on all ids) to certainty (one id has nearly all), with tiles that are not full.

    Relative to the soft embedding's length, which is short where many ids average out: worst for few ids, unsure.
    """
    embedding = some(vocab, 64, seed=1).bfloat16()
    hidden = (some(80, 64) / 8 + sure / 64 * embedding[torch.arange(80) * 7].float()).bfloat16()
    head = Int8Embedding(embedding)
    query = VocabQuery(0.7, want_soft=True)
    with torch.no_grad():
        mine = OPS[None].vocab_head(hidden, embedding, query, cap=30.0, head=head).soft
        z = 30 * torch.tanh(head(hidden).float() / 30) / 0.7
    plain = torch.softmax(z, -1) @ embedding.float()
    assert float(((mine - plain).norm(dim=-1) / plain.norm(dim=-1)).max()) < tolerance
    assert head.nbytes < 2.3 * vocab * 64 + 2 * 1024 * 64


@pytest.mark.parametrize("packed", [False, None])
def test_a_quantized_model_stays_close_to_its_float_original(packed):
    """Random weights of spread logits are the hard case: mean divergence under 0.1 nats of about 4 (97 ids)."""
    shape = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32}
    model = tiny_model(dtype=torch.bfloat16, **shape)
    small = tiny_model(dtype=torch.bfloat16, **shape).use(OPS[packed]).convert("int8")
    canvas = torch.tensor(prompt(8, seed=5))
    logs = []
    for one in (model, small):
        cache = one.new_cache()
        one.encode(torch.tensor(prompt(12)), cache)
        logs.append(torch.log_softmax(one.denoise_logits(canvas, cache), -1))
    divergence = (logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean()
    assert 0 < float(divergence) < 0.1


def test_same_seed_same_tokens_alone_and_in_a_batch(tmp_path):
    folder = save_folder(tmp_path / "model", tiny_model(dtype=torch.bfloat16))
    llm = LLM.load(folder, dtype="int8")
    config = GenerationConfig(max_new_tokens=12, seed=3, max_denoising_steps=4)
    alone = [llm.generate_ids(prompt(n), config).token_ids for n in (5, 9)]
    assert [answer.token_ids for answer in llm.generate_ids([prompt(5), prompt(9)], config)] == alone
    assert llm.generate_ids(prompt(5), config).token_ids == alone[0]
    greedy = GenerationConfig(max_new_tokens=5, seed=3, decoder="autoregressive")
    assert llm.generate_ids(prompt(5), greedy).token_ids == llm.generate_ids(prompt(5), greedy).token_ids


def test_weights_shrink_and_cannot_be_saved(tmp_path):
    folder = save_folder(tmp_path / "model", tiny_model(dtype=torch.float32))
    model = load_checkpoint(folder, "int8")
    assert model.dtype is torch.bfloat16
    assert model.state_dict()["layers.0.mlp.gate_proj.weight"].dtype is torch.int8
    with pytest.raises(CheckpointError, match="int8 cannot be saved"):
        save_checkpoint(model, tmp_path / "again")
    assert model.convert("int8") is model  # a second time changes nothing
    with pytest.raises(InvalidRequest, match="in int8 already"):
        model.convert("int4")


def test_only_on_the_cpu():
    model = tiny_model().to("meta")
    with pytest.raises(InvalidRequest, match="dtype int8 cannot run on meta"):
        model.convert("int8")

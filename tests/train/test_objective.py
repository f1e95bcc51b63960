"""The training objective: what is corrupted, what each loss sees, and that its gradients are right."""

import pytest
import torch
import torch.nn.functional as F

from scumble.ops import softcap
from scumble.ops.training import PLAIN_TRAINING
from scumble.train.config import ModelShape, Objective
from scumble.train.corrupt import corrupt
from scumble.train.init import new_model
from scumble.train.loss import head_loss
from scumble.train.objective import losses
from scumble.train.soft import soft_embeddings

SHAPE = ModelShape(
    hidden_size=32, layers=3, heads=4, head_dim=16, kv_heads=2, full_head_dim=32, full_kv_heads=1, mlp=48, experts=4,
    experts_per_token=2, expert_mlp=24, sliding_window=6, context=128, canvas_length=4, sliding_per_full=1,
)  # fmt: skip


@pytest.fixture
def model():
    return new_model(SHAPE.build(vocab_size=61, eos_id=1, bos_id=2, pad_id=0), seed=3)


def rows(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three rows of bos, tokens, eos, pads: a prompt of 5 and three canvases of 4."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 61, (3, 17), generator=generator)
    lengths = torch.tensor([17, 12, 9])
    ids[:, 0] = 2
    for row, length in enumerate(lengths):
        ids[row, length - 1] = 1
        ids[row, length:] = 0
    return ids, lengths


def test_head_loss_is_the_cross_entropy_of_the_soft_capped_head_with_its_gradients():
    torch.manual_seed(0)
    hidden = torch.randn(50, 16, dtype=torch.float64, requires_grad=True)
    embedding = torch.randn(37, 16, dtype=torch.float64, requires_grad=True)
    targets, weights = torch.randint(37, (50,)), torch.rand(50)
    plain_z = softcap(hidden @ embedding.T, 5.0)
    plain = (F.cross_entropy(plain_z, targets, reduction="none") * weights).sum()
    plain.backward()
    expected = hidden.grad.float(), embedding.grad.float()

    h, e = hidden.detach().float().requires_grad_(), embedding.detach().float().requires_grad_()
    loss = head_loss(PLAIN_TRAINING, h, e, targets, weights, 5.0)
    (3 * loss).backward()  # a factor from outside reaches the gradients
    torch.testing.assert_close(loss, plain.detach().float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(h.grad, 3 * expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(e.grad, 3 * expected[1], rtol=1e-4, atol=1e-5)


def test_each_token_is_replaced_with_its_canvas_noise_level():
    ids = torch.full((400, 5 + 3 * 64), 7)
    noised = corrupt(ids, 5, 64, 10_000, torch.Generator().manual_seed(1))
    assert noised.first == [5, 69, 133]
    changed = (noised.ids != 7).float().mean(-1)  # a random id is 7 once in 10,000
    assert (changed - noised.level).abs().mean() < 0.06  # binomial: sqrt(t(1-t)/64) <= 0.0625
    assert noised.level.mean() == pytest.approx(0.5, abs=0.03)
    assert noised.ids.max() > 9_000


def test_one_canvas_of_a_row_may_be_chosen():
    ids, _ = rows()
    one = Objective(canvases=1)
    starts = {tuple(corrupt(ids, 5, 4, 61, torch.Generator().manual_seed(s), one).first) for s in range(40)}
    assert starts == {(5,), (9,), (13,)}


def test_a_span_of_noise_leaves_the_rest_right():
    """Pinned positions, and a canvas written from its start, look like this."""
    ids = torch.full((300, 5 + 2 * 16), 7)
    lengths = torch.full((300,), 5 + 10)  # the second canvas holds pads alone, the first one 10 tokens
    noised = corrupt(
        ids, 5, 16, 10_000, torch.Generator().manual_seed(1), Objective(span_share=1.0), lengths=lengths
    )  # fmt: skip
    changed = noised.ids != 7
    edges = (changed[..., 1:] != changed[..., :-1]).sum(-1)
    assert edges.max() <= 2, "one span"
    assert changed.any(-1).all(), "never without noise"
    torch.testing.assert_close(noised.level, changed.float().mean(-1), rtol=0, atol=0.1)
    first = changed[:, 0].float().argmax(-1)
    assert first.max() <= 9, "it begins in the text"
    assert changed[:, 0, -1].float().mean() == pytest.approx(0.55, abs=0.1)


def test_a_canvas_may_hold_a_draft_instead_of_the_right_text():
    """As `LLM.repair` begins: half of them untouched, the others noised like all."""
    ids = torch.full((400, 5 + 2 * 64), 20_000)  # ids that no noise has
    drafts = torch.arange(30_000, 30_128).repeat(400, 1)
    own = Objective(draft_share=0.5)
    noised = corrupt(ids, 5, 64, 10_000, torch.Generator().manual_seed(1), own, drafts=drafts)
    held = noised.ids == drafts.unflatten(1, (2, 64))  # by canvas, and in the order of the canvases
    drafted = held.any(-1)
    assert drafted.float().mean() == pytest.approx(0.5, abs=0.05)
    assert not (noised.ids[drafted] == 20_000).any(), "nothing of the right text is left in them"
    assert (noised.level == 0).float().mean() == pytest.approx(0.25, abs=0.04)
    assert held[noised.level == 0].all()
    noisy = drafted & (noised.level > 0)
    torch.testing.assert_close(1 - held[noisy].float().mean(-1), noised.level[noisy], rtol=0, atol=0.25)
    plain = corrupt(ids, 5, 64, 10_000, torch.Generator().manual_seed(1), Objective(), drafts=drafts)
    assert torch.equal(plain.ids, corrupt(ids, 5, 64, 10_000, torch.Generator().manual_seed(1)).ids)


def test_a_drafted_canvas_is_to_become_the_row_s_own_text(model):
    ids, lengths = rows()
    own = Objective(self_conditioning=0.0, draft_share=1.0)

    def loss(drafts: torch.Tensor) -> float:
        return losses(model, ids, lengths, 5, 4, own, torch.Generator().manual_seed(9), drafts=drafts).denoise

    for _ in range(30):  # until the model copies what stands on the canvas
        result = losses(model, ids, lengths, 5, 4, own, torch.Generator().manual_seed(9), drafts=ids[:, 5:])
        model.zero_grad()
        result.total.backward()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.grad is not None:
                    weight -= 0.1 * weight.grad
    assert loss(ids[:, 5:]) < loss(torch.full((3, 12), 60)) - 0.1


def test_copies_of_a_canvas_share_the_encoding_and_differ_in_noise(model):
    ids, lengths = rows()
    noised = corrupt(ids, 5, 4, 61, torch.Generator().manual_seed(3), copies=3)
    assert noised.first == [5, 9, 13] * 3
    assert noised.ids.shape == (3, 9, 4)
    assert not torch.equal(noised.ids[:, :3], noised.ids[:, 3:6])
    plain = Objective(self_conditioning=0.0, balance_weight=0.0)
    result = losses(model, ids, lengths, 5, 4, plain, torch.Generator().manual_seed(9), copies=2)
    causal, denoise = reference_losses(model, ids, lengths, 5, 4, 9, copies=2)
    assert result.causal == pytest.approx(causal, rel=1e-5)
    assert result.denoise == pytest.approx(denoise, rel=1e-5)


@torch.no_grad()
def reference_losses(model, ids, lengths, prompt, canvas, seed, copies=1):
    """The same two losses by the inference path: one row at a time, through the cache, all logits in memory."""
    config = model.config
    noised = corrupt(ids, prompt, canvas, config.vocab_size, torch.Generator().manual_seed(seed), copies=copies)
    causal_sum, causal_count, canvas_losses = 0.0, 0, []
    for row in range(ids.shape[0]):
        n = int(lengths[row])
        cache = model.new_cache()
        hidden = model.encode(ids[row, :n], cache)
        z = softcap(hidden @ model.embed_tokens.weight.T, config.final_logit_softcapping)
        causal_sum += float(F.cross_entropy(z[:-1], ids[row, 1:n], reduction="sum"))
        causal_count += n - 1
        for index, first in enumerate(noised.first):
            cache = model.new_cache()
            model.encode(ids[row, :first], cache)
            z = model.denoise_logits(noised.ids[row, index], cache)
            clean = ids[row, first : first + canvas]
            canvas_losses.append(float(F.cross_entropy(z, clean)))
    return causal_sum / causal_count, sum(canvas_losses) / len(canvas_losses)


@pytest.mark.parametrize("canvas", [4, 2])  # the model's own length, and a shorter one
def test_both_losses_equal_those_of_the_inference_path(model, canvas):
    """Training attends in batches with masks, inference row by row over a cache: one transformer, same numbers."""
    ids, lengths = rows()
    plain = Objective(self_conditioning=0.0, balance_weight=0.0)
    result = losses(model, ids, lengths, 5, canvas, plain, torch.Generator().manual_seed(9))
    causal, denoise = reference_losses(model, ids, lengths, 5, canvas, 9)
    assert result.causal == pytest.approx(causal, rel=1e-5)
    assert result.denoise == pytest.approx(denoise, rel=1e-5)
    assert float(result.total.detach()) == pytest.approx(causal + denoise, rel=1e-5)
    assert result.tokens == 17 + 12 + 9


def test_gradients_reach_every_weight_and_through_the_cache(model):
    ids, lengths = rows()
    both = Objective(self_conditioning=1.0, causal_weight=0.0)
    losses(model, ids, lengths, 5, 4, both, torch.Generator().manual_seed(2)).total.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [name for name in silent if "experts" not in name]  # an expert that no token chose has none


def test_causal_only_leaves_the_canvas_out(model):
    ids, lengths = rows()
    result = losses(model, ids, lengths, 5, 4, Objective(), torch.Generator().manual_seed(2), causal_only=True)
    result.total.backward()
    assert result.denoise == 0
    assert model.self_conditioning.gate_proj.weight.grad is None


def test_soft_embeddings_are_those_of_the_tempered_distribution(model):
    generator = torch.Generator().manual_seed(1)
    hidden, level = torch.randn(24, 32, generator=generator), torch.rand(3, 2, generator=generator)  # canvases of 4
    heat = (0.4 + 0.4 * level).flatten().repeat_interleave(4)[:, None]
    shares = torch.softmax(model.logits(hidden) / heat, -1)
    soft = soft_embeddings(model, hidden, level, 0.4, 0.8)
    torch.testing.assert_close(soft, shares @ model.embed_tokens.weight, rtol=1e-4, atol=1e-4)

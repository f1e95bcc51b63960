"""bfloat16: agreement as distributions.

In bfloat16 (8 bits of precision) two correct programs do not give the same numbers: every sum rounds differently, and a
router's near-tie sends a token to another expert. Neither program is the truth. The truth is the same weights run in
float32, and what can be asked of Scumble is to be as close to it as `transformers` is. With KL(truth ‖ program) per
canvas position, over more than 1500 positions of six random models:

    median KL of ours ≤ 1.2 · median KL of theirs         the usual position
    mean KL of ours   ≤ 1.5 · mean KL of theirs           all of them, with the few where an expert flips

Why these factors. Two sets of `transformers`' own kernels (fused and eager attention) are two correct programs; over
all these models their medians and means differ by 2 %, but on single models the means differ by a factor of 2 and more,
because a hundredth of the positions, at which an expert flips, holds most of a mean. So the median is held tightly and
the mean loosely. Lost precision shows: RMSNorm computed in bfloat16 raises the median by 70 %, the soft-cap in bfloat16
by 40 %. The slow tests below repeat these measurements. What the medians cannot see is a router softmax in bfloat16
(4 %): only the float32 tests pin the router.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from oracle import Oracle, Shape, build_oracle, random_shape
from scumble import LLM, GenerationConfig
from scumble.checkpoint import load_checkpoint
from scumble.model import Transformer

TEMPERATURE = 0.6
MEDIAN_FACTOR, MEAN_FACTOR = 1.2, 1.5
SEEDS = range(6)


def truth_of(seed: int) -> Oracle:
    """A float32 model whose weights bfloat16 can hold, so that only arithmetic differs, not the weights."""
    shape = Shape(layers="sssf") if seed == 0 else random_shape(seed)
    return build_oracle(shape, seed, representable_in=torch.bfloat16)


def in_bfloat16(truth: Oracle) -> Oracle:
    oracle = Oracle(truth.shape, copy.deepcopy(truth.model).to(torch.bfloat16))
    # transformers' grouped product for experts takes bfloat16 rows in multiples of 8 only; some models have others.
    oracle.model.set_experts_implementation("eager")
    return oracle


def two_passes(
    model: Oracle | Transformer, context: torch.Tensor, canvas: torch.Tensor, previous: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [L, V] of a first pass over a canvas, and of one conditioned on `previous` (None: on the first pass)."""
    if isinstance(model, Oracle):
        _, cache = model.encode(context)
    else:
        cache = model.new_cache()
        model.encode(context, cache)
    first = model.denoise_logits(canvas, cache)
    assert first.dtype == torch.float32  # the soft-cap runs in float32 everywhere
    previous = first if previous is None else previous
    return first, model.denoise_logits(canvas.flip(0), cache, previous / TEMPERATURE)


def divergences(truth: Oracle, models: Sequence[Oracle | Transformer], rounds: int = 12) -> list[torch.Tensor]:
    """KL(truth ‖ model) in nats for every model, at every position of two passes over random canvases behind random
    contexts, [rounds · 2 · L]. All models are conditioned on the truth's logits, so that no error counts twice."""
    out: list[list[torch.Tensor]] = [[] for _ in models]
    vocab, length = truth.shape.vocab_size, truth.shape.canvas_length
    for number in range(rounds):
        generator = torch.Generator().manual_seed(number)
        context = torch.randint(vocab, (4 + 5 * number % 40,), generator=generator)
        canvas = torch.randint(vocab, (length,), generator=generator)
        exact = two_passes(truth, context, canvas)
        for model, kept in zip(models, out, strict=True):
            for reference, logits in zip(exact, two_passes(model, context, canvas, exact[0]), strict=True):
                p, q = ((z.double() / TEMPERATURE).log_softmax(-1) for z in (reference, logits))
                kept.append((p.exp() * (p - q)).sum(-1))
    return [torch.cat(kept) for kept in out]


def test_as_close_to_float32_as_transformers(tmp_path: Path):
    pairs = []
    for seed in SEEDS:
        truth = truth_of(seed)
        engine = load_checkpoint(truth.save(tmp_path / str(seed)), dtype=torch.bfloat16)
        pairs.append(divergences(truth, [engine, in_bfloat16(truth)]))
    ours, theirs = (torch.cat(side) for side in zip(*pairs, strict=True))
    assert len(ours) > 1500
    assert theirs.median() > 1e-4, "bfloat16 rounds nothing here; the comparison is empty"
    assert ours.median() <= MEDIAN_FACTOR * theirs.median()
    assert ours.mean() <= MEAN_FACTOR * theirs.mean()


def test_argmax_agrees_where_the_truth_is_clear(tmp_path: Path):
    """Where float32 prefers one id by more than 2 (in logits), bfloat16 prefers the same one, nearly always."""
    truth = truth_of(0)
    model = load_checkpoint(truth.save(tmp_path), dtype=torch.bfloat16)
    context, cache = torch.arange(20), model.new_cache()
    model.encode(context, cache)
    _, exact = truth.encode(context)
    canvases = torch.randint(97, (30, 12), generator=torch.Generator().manual_seed(0))
    reference = torch.cat([truth.denoise_logits(canvas, exact) for canvas in canvases])
    logits = torch.cat([model.denoise_logits(canvas, cache) for canvas in canvases])
    best = reference.topk(2, dim=-1).values
    clear = best[:, 0] - best[:, 1] > 2
    assert clear.sum() > 50
    assert (logits.argmax(-1) == reference.argmax(-1))[clear].float().mean() > 0.98


def test_generation_is_a_function_of_its_seed(tmp_path: Path):
    """Ids cannot be compared across programs in bfloat16; across runs and batches of one program they are the same."""
    llm = LLM.load(truth_of(0).save(tmp_path), dtype="bfloat16")
    config = GenerationConfig(max_new_tokens=30, max_denoising_steps=6, seed=3, ignore_eos=True)
    alone = llm.generate_ids([5, 17, 40, 3], config)
    _, in_batch = llm.generate_ids([[9, 9, 60], [5, 17, 40, 3]], config)
    assert len(alone.token_ids) == 30
    assert in_batch.token_ids == alone.token_ids


# --- the measurements behind the factors ----------------------------------------------------------------------------


def norms_in_bfloat16(oracle: Oracle) -> None:
    for module in oracle.model.modules():
        if type(module).__name__ == "DiffusionGemmaRMSNorm":

            def normalize(x: torch.Tensor, norm: torch.nn.Module = module) -> torch.Tensor:
                scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps)
                return x * scale * (norm.weight if norm.with_scale else 1)

            module.forward = normalize


def soft_cap_in_bfloat16(oracle: Oracle) -> None:
    """The head returns values that the float32 soft-cap behind it turns into a soft-cap computed in bfloat16."""
    head, cap = oracle.model.lm_head.forward, oracle.shape.final_logit_softcapping

    def capped(hidden: torch.Tensor) -> torch.Tensor:
        rounded = cap * torch.tanh(head(hidden) / cap)
        return cap * torch.atanh((rounded.float() / cap).clamp(-0.9999999, 0.9999999))

    oracle.model.lm_head.forward = capped


def changed_against_plain(change: Callable[[Oracle], object]) -> tuple[float, float]:
    """Quotients of the medians and of the means of KL: `transformers` in bfloat16 after a change, against as it is."""
    pairs = []
    for seed in SEEDS:
        truth = truth_of(seed)
        plain, changed = in_bfloat16(truth), in_bfloat16(truth)
        change(changed)
        pairs.append(divergences(truth, [changed, plain]))
    changed, plain = (torch.cat(side) for side in zip(*pairs, strict=True))
    quotients = float(changed.median() / plain.median()), float(changed.mean() / plain.mean())
    print("\nquotient of medians {:.2f}, of means {:.2f}".format(*quotients))
    return quotients


@pytest.mark.slow
def test_correct_kernels_differ_by_less_than_the_factors():
    median, mean = changed_against_plain(lambda oracle: oracle.model.set_attn_implementation("eager"))
    assert 1 / 1.1 < median < 1.1
    assert 1 / MEAN_FACTOR < mean < MEAN_FACTOR


@pytest.mark.slow
@pytest.mark.parametrize("mistake", [norms_in_bfloat16, soft_cap_in_bfloat16])
def test_lost_precision_exceeds_the_median_factor(mistake: Callable[[Oracle], None]):
    median, _ = changed_against_plain(mistake)
    assert median > MEDIAN_FACTOR

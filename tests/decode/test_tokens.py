"""The baseline decoder: greedy equals recomputing everything, and top-k and top-p follow their laws."""

import pytest
import torch
from scipy import stats

from scumble import GenerationConfig
from scumble.diffusion import SeededNoise
from scumble.engine.choose import TokenChoice
from scumble.engine.choose import choose as choose_tokens
from scumble.ops import softcap
from tiny import answer, prompt, tiny_model


def test_greedy_equals_the_argmax_recomputed_from_the_whole_text_each_time():
    model, ids = tiny_model(2), prompt(5)
    config = GenerationConfig(max_new_tokens=20, decoder="autoregressive", temperature=0, ignore_eos=True)
    row = answer(model, [ids], config)[0]
    for token in row["ids"]:
        hidden = model.encode(torch.tensor(ids), model.new_cache())[-1]
        assert token == int((hidden @ model.embed_tokens.weight.T).argmax())
        ids = [*ids, token]
    assert row["answer"].passes == (20,)


def choose(logits: torch.Tensor, configs: list[GenerationConfig], uniforms: torch.Tensor) -> torch.Tensor:
    return choose_tokens(logits, TokenChoice.of(configs, logits.device), uniforms)


def truncated(probabilities: torch.Tensor, top_k: int | None, top_p: float | None) -> torch.Tensor:
    """The law in plain Python: keep the k best, and the fewest best whose probabilities reach p; renormalise."""
    kept, mass = [], 0.0
    for rank, index in enumerate(probabilities.argsort(descending=True, stable=True).tolist()):
        if (top_k is not None and rank >= top_k) or (top_p is not None and mass >= top_p):
            break
        kept.append(index)
        mass += float(probabilities[index])
    out = torch.zeros_like(probabilities)
    out[kept] = probabilities[kept]
    return out / out.sum()


@pytest.mark.parametrize(
    ("top_k", "top_p", "temperature"),
    [
        (None, None, 1.0),
        (5, None, 1.0),
        (None, 0.7, 1.0),
        (6, 0.8, 0.7),
        (1, None, 1.0),
        (None, 1e-6, 1.0),
        (999, 1.0, 2.0),
    ],
)
def test_samples_follow_the_truncated_softmax(top_k, top_p, temperature):
    """Chi-square over 4,000 draws of 30 ids; nothing outside the kept ids is ever drawn. Fixed seed."""
    logits = torch.randn(30, generator=torch.Generator().manual_seed(4)) * 1.5
    config = GenerationConfig(top_k=top_k, top_p=top_p, temperature=temperature)
    law = truncated(torch.softmax(logits.double() / temperature, -1), top_k, top_p)
    draws = choose(logits.expand(4_000, -1), [config] * 4_000, SeededNoise(9).uniform(0, 0, 4_000))
    counts = torch.bincount(draws, minlength=30)
    assert int(counts[law == 0].sum()) == 0
    expected = law * 4_000
    common = expected >= 5
    observed, wanted = counts[common].double(), expected[common]
    if len(wanted) > 1:
        wanted = wanted * observed.sum() / wanted.sum()
        assert stats.chisquare(observed.numpy(), wanted.numpy()).pvalue > 1e-3
    else:
        assert int(counts[law > 0].sum()) == 4_000


UNIFORMS = torch.tensor([0.0, 0.5, 1 - 2.0**-53], dtype=torch.float64)


def test_temperature_zero_ignores_the_uniform():
    logits = torch.randn(30)
    chosen = choose(logits.expand(3, -1), [GenerationConfig(temperature=0)] * 3, UNIFORMS)
    assert chosen.tolist() == [int(logits.argmax())] * 3


def test_rows_with_settings_of_their_own_are_what_they_are_alone():
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(5))
    configs = [
        GenerationConfig(temperature=0), GenerationConfig(), GenerationConfig(temperature=0.5, top_k=3),
        GenerationConfig(top_p=0.4, temperature=2.0),
    ]  # fmt: skip
    uniforms = torch.tensor([0.1, 0.7, 0.3, 0.9], dtype=torch.float64)
    alone = [int(choose(logits[i : i + 1], configs[i : i + 1], uniforms[i : i + 1])) for i in range(4)]
    assert choose(logits, configs, uniforms).tolist() == alone


@pytest.mark.parametrize("temperature", [1e-4, 1000])
def test_extreme_temperatures_stay_finite(temperature):
    logits = softcap(torch.randn(30) * 100, 30.0)
    chosen = choose(logits.expand(3, -1), [GenerationConfig(temperature=temperature)] * 3, UNIFORMS)
    assert all(0 <= token < 30 for token in chosen.tolist())


def test_the_largest_uniform_draws_the_last_id_that_has_any_probability():
    logits = torch.randn(3, 30, generator=torch.Generator().manual_seed(6))
    logits[:, 20:] = float("-inf")
    logits[1, 10:20] = -30.0
    configs, uniforms = [GenerationConfig()] * 3, torch.full((3,), 1 - 2.0**-53, dtype=torch.float64)
    assert choose(logits, configs, uniforms).tolist() == [19, 19, 19]
    logits[1, 10:20] = -80.0  # less than a uniform can tell from nothing
    assert choose(logits, configs, uniforms).tolist() == [19, 9, 19]


def test_without_numbers_the_choice_is_an_id_all_the_same():
    logits = torch.full((2, 30), float("nan"))
    assert all(0 <= token < 30 for token in choose(logits, [GenerationConfig()] * 2, UNIFORMS[:2]).tolist())

"""The baseline decoder: greedy equals recomputing everything, and top-k and top-p follow their laws."""

import pytest
import torch
from scipy import stats

from scumble import GenerationConfig
from scumble.diffusion import SeededNoise
from scumble.engine import make_request
from scumble.engine.autoregressive import choose
from scumble.ops import softcap
from tiny import answer, prompt, tiny_config, tiny_model


def settings_of(**changes):
    config = GenerationConfig(decoder="autoregressive", **changes)
    return make_request([5], config, {}, tiny_config()).settings


def test_greedy_equals_the_argmax_recomputed_from_the_whole_text_each_time():
    model, ids = tiny_model(2), prompt(5)
    config = GenerationConfig(max_new_tokens=20, decoder="autoregressive", temperature=0, ignore_eos=True)
    row = answer(model, [ids], config)[0]
    for token in row["ids"]:
        hidden = model.encode(torch.tensor(ids), model.new_cache())[-1]
        assert token == int((hidden @ model.embed_tokens.weight.T).argmax())
        ids = [*ids, token]
    assert row["answer"].passes == (20,)


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
    settings = settings_of(top_k=top_k, top_p=top_p, temperature=temperature)
    law = truncated(torch.softmax(logits.double() / temperature, -1), top_k, top_p)
    draws = [choose(logits, settings, u) for u in SeededNoise(9).uniform(0, 0, 4_000).tolist()]
    counts = torch.bincount(torch.tensor(draws), minlength=30)
    assert int(counts[law == 0].sum()) == 0
    expected = law * len(draws)
    common = expected >= 5
    observed, wanted = counts[common].double(), expected[common]
    if len(wanted) > 1:
        wanted = wanted * observed.sum() / wanted.sum()
        assert stats.chisquare(observed.numpy(), wanted.numpy()).pvalue > 1e-3
    else:
        assert int(counts[law > 0].sum()) == len(draws)


def test_temperature_zero_ignores_the_uniform():
    logits = torch.randn(30)
    assert {choose(logits, settings_of(temperature=0), u) for u in (0.0, 0.5, 1 - 2.0**-53)} == {int(logits.argmax())}


@pytest.mark.parametrize("temperature", [1e-4, 1000])
def test_extreme_temperatures_stay_finite(temperature):
    logits = softcap(torch.randn(30) * 100, 30.0)
    for uniform in (0.0, 0.5, 1 - 2.0**-53):
        assert 0 <= choose(logits, settings_of(temperature=temperature), uniform) < 30

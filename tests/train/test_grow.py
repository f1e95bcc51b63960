"""A deepened model says what the smaller one said, and all of it learns."""

import pytest
import torch

from scumble import DataError
from scumble.checkpoint import load_checkpoint
from scumble.train.grow import grow
from scumble.train.loop import train
from tiny import FULL, SLIDING, prompt, tiny_model

from .runs import edit, plan, tuning_plan


@pytest.mark.parametrize("layers", [(SLIDING, SLIDING, FULL), (FULL,), (SLIDING, FULL, SLIDING, SLIDING, FULL)])
@pytest.mark.parametrize("blocks", [1, 2])
def test_new_layers_change_nothing(layers, blocks):
    model = tiny_model(layers=layers)
    deeper = grow(model, blocks)
    block = layers[-3:] if len(layers) > 1 else layers
    assert deeper.config.layers == (*layers, *block * blocks)
    ids = torch.tensor(prompt(20))
    caches = model.new_cache(), deeper.new_cache()
    assert torch.equal(deeper.encode(ids, caches[1]), model.encode(ids, caches[0]))
    canvas = torch.tensor(prompt(8, 3))
    assert torch.equal(deeper.denoise_logits(canvas, caches[1]), model.denoise_logits(canvas, caches[0]))


def test_a_run_may_deepen_what_it_starts_from(folder):
    first = train(plan(folder, "shallow", 1), lambda line: None)
    shallow = load_checkpoint(first, torch.float32)
    config = tuning_plan(folder, "deep", first, ("threads = 1", "threads = 1\ngrow = 1"))
    deep = load_checkpoint(train(config, lambda line: None), torch.float32)
    assert len(deep.config.layers) == len(shallow.config.layers) + 2
    for new, old in enumerate((0, 1, 0, 1)):  # the norms have moved after one step, everything behind them after two
        before, after = dict(shallow.layers[old].named_parameters()), dict(deep.layers[new].named_parameters())
        still = [name for name in after if torch.equal(after[name], before[name])]
        assert not [name for name in still if after[name].ndim > 1], still


def test_only_a_checkpoint_can_be_deepened(folder):
    plan(folder, "fresh", 1)
    with pytest.raises(DataError, match=r"run.grow \(1\) deepens a checkpoint; give its folder as run.init"):
        edit(folder, "fresh", ("threads = 1", "threads = 1\ngrow = 1"))

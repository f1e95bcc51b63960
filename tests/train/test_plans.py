"""The plans in configs/ can be read, and are of the sizes that they say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from scumble.model import weight_shapes
from scumble.train.read_config import read_train_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", ["embedded.toml", "embedded-gpu.toml"])
def test_plans_can_be_read(name: str) -> None:
    plan = read_train_config(CONFIGS / name)
    assert plan.model is not None
    assert plan.run.steps > 0


def test_the_plan_for_a_gpu_makes_a_file_that_fits_into_the_package() -> None:
    """64 MiB in int4: half a byte a number, two bytes of scale for 32; what is no matrix of a layer in bfloat16. The
    folder's other files take another MiB or so."""
    plan = read_train_config(CONFIGS / "embedded-gpu.toml")
    assert plan.model is not None
    config = plan.model.build(16_384, 1, 2, 0)
    counts = {name: math.prod(shape) for name, shape in weight_shapes(config).items()}
    assert 85e6 < sum(counts.values()) < 115e6
    small = {name for name in counts if name.startswith("layers.") and "_proj" in name}
    nbytes = sum(count * (18 / 32 if name in small else 2) for name, count in counts.items())
    assert nbytes < 62.5 * 2**20
    assert config.canvas_length == 128
    chosen = config.top_k_experts / config.num_experts
    active = sum(count * (chosen if ".experts." in name else 1) for name, count in counts.items())
    assert 40e6 < active < 55e6

"""Fixtures of the parity tests: an oracle and the engine on the same checkpoint folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch

from oracle import Oracle, Shape, build_oracle
from scumble import LLM
from scumble.checkpoint import load_checkpoint
from scumble.model import Transformer


@dataclass
class Pair:
    """Two readers of one folder: `oracle` is transformers, `model` and `llm` are Scumble, all in float32."""

    oracle: Oracle
    folder: Path

    @cached_property
    def model(self) -> Transformer:
        return load_checkpoint(self.folder, dtype=torch.float32)

    @cached_property
    def llm(self) -> LLM:
        return LLM.load(self.folder, dtype="float32")

    @property
    def shape(self) -> Shape:
        return self.oracle.shape


PairMaker = Callable[..., Pair]


@pytest.fixture(scope="package")
def pair(tmp_path_factory: pytest.TempPathFactory) -> PairMaker:
    """`pair(shape, seed, **weights)`: build a random checkpoint once (see `build_oracle`), save it, load it twice."""
    made: dict[tuple, Pair] = {}

    def make(shape: Shape = Shape(), seed: int = 0, **weights: object) -> Pair:  # noqa: B008 (frozen)
        key = (shape, seed, *sorted(weights.items()))
        if key not in made:
            oracle = build_oracle(shape, seed, **weights)
            made[key] = Pair(oracle, oracle.save(tmp_path_factory.mktemp("checkpoint")))
        return made[key]

    return make


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on two threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

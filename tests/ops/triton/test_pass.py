"""What passes of the release's shape do on a card that is not there (card.py): all of what is captured stays on it,
nothing waits for a number, kernels are handed what they suppose, and all that is launched is compiled by the compile
check in just that form."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from ops.triton import release
from ops.triton.card import CARD, Captured, no_card, on_card
from scumble import GenerationConfig
from scumble.bench.shapes import RELEASE
from scumble.config import ModelConfig
from scumble.decode import make_request
from scumble.decode.constraint import Restriction
from scumble.decode.steps import Start
from scumble.diffusion import SeededNoise, start_canvas
from scumble.engine.choose import TokenChoice
from scumble.engine.row import Row
from scumble.engine.slots import Slot, Slots
from scumble.engine.static_pass import Arena, Asked, StaticPass, StaticStep
from scumble.formats import Format
from scumble.model import Segment, Transformer
from scumble.ops import VocabQuery
from scumble.ops.triton.launch import TABLE, Launch, recorded
from scumble.ops.triton.ops import TritonOps

SHORT = replace(RELEASE, layers=RELEASE.layers[4:6], num_experts=16)  # a sliding and a full layer
LAYERS = len(RELEASE.layers)


@dataclass(frozen=True)
class Ran:
    """Kernels, and operations of torch, in order. made: what came of it."""

    launches: list[Launch]
    operations: list[str]
    made: list[Tensor]

    def count(self, name: str) -> int:
        return sum(one.name == name for one in self.launches)

    @property
    def attends(self) -> int:
        return sum("attend" in one.name for one in self.launches if one.name != "attention tail")


def ran(config: ModelConfig, form: Format | None, prepare: Callable[[Transformer], Callable[[], list[Tensor]]]) -> Ran:
    """What `prepare` makes of a model, as it would be captured: run once before."""
    with torch.device("meta"):
        model = Transformer(config).to(torch.bfloat16)
    with no_card(), torch.no_grad(), recorded(90) as launches:
        model = on_card(model, TritonOps(device=CARD))
        if form is not None:
            model.convert(form)
        compute = prepare(model)
        compute()
        launches.clear()
        with Captured() as captured:
            made = compute()
        return Ran(list(launches), captured.operations, made)


def forward(rows: int, tokens: int, config: ModelConfig = RELEASE) -> Ran:
    """Canvases of so many tokens, operation by operation, and their head."""

    def prepare(model: Transformer) -> Callable[[], list[Tensor]]:
        batch = []
        for _ in range(rows):
            soft = torch.empty(tokens, config.hidden_size, device=CARD)
            ids = torch.empty(tokens, dtype=torch.int64, device=CARD)
            batch.append(Segment(ids, model.new_cache(), "denoise", soft))
        uniforms = torch.empty(rows * tokens, dtype=torch.float64, device=CARD)

        def compute() -> list[Tensor]:
            hidden = model(batch)
            return [hidden, model.vocab_head(hidden, VocabQuery(0.6, uniforms=uniforms, want_soft=True)).entropy]

        return compute

    return ran(config, None, prepare)


def replayed(rows: int, config: ModelConfig = RELEASE, form: Format | None = None, want_soft: bool = True) -> Ran:
    """A pass that is captured: with noise, sampler and stopping rule, contexts in pages."""
    request = make_request([5, 6, 7], GenerationConfig(max_denoising_steps=16, seed=1), {}, config)
    row, noise = Row(request, lambda event: None), SeededNoise(1)
    start = Start(start_canvas(noise, 0, config.canvas_length, config.vocab_size), noise, Restriction())

    def prepare(model: Transformer) -> Callable[[], list[Tensor]]:
        slots = Slots.of([Slot(row, 0, 0, start) for _ in range(rows)], config.vocab_size, CARD)
        static = StaticPass(model, Arena(model, rows, 1024, config.canvas_length), slots, want_soft, 16)
        return lambda: [static.compute().flags]

    return ran(config, form, prepare)


def step(rows: int, ways: dict[str, float], config: ModelConfig = RELEASE, form: Format | None = None) -> Ran:
    """A captured step up to the next ids."""
    configs = [GenerationConfig(decoder="autoregressive", **ways) for _ in range(rows)]

    def prepare(model: Transformer) -> Callable[[], list[Tensor]]:
        asked = Asked([5] * rows, [], TokenChoice.of(configs, torch.device("cpu")), [0.5] * rows)
        static = StaticStep(model, Arena(model, rows, 1024, config.canvas_length), asked)
        return lambda: list(static.compute())

    return ran(config, form, prepare)


def test_a_pass_shares_its_launches_among_rows() -> None:
    """Attention is launched row by row; all else, what mixes soft embeddings in too, once for all rows."""
    one, four = forward(1, 256), forward(4, 256)
    for name in ("router", "up plain", "down plain", "attention tail", "layer tail"):
        assert one.count(name) == four.count(name) == LAYERS
    assert one.count("vocab") == four.count("vocab")
    assert four.attends == 4 * LAYERS


def test_a_replayed_pass_stays_on_the_card_and_rows_share_its_attention() -> None:
    one, four = replayed(1), replayed(4)
    assert four.made[0].shape == (3, 4)
    assert len(one.launches) == len(four.launches) == 551
    assert four.attends == LAYERS
    assert len(one.operations) <= len(four.operations) == 74


@pytest.mark.parametrize("ways", [{}, {"top_k": 40}, {"temperature": 0}], ids=["draw", "draw among the best", "argmax"])
def test_so_does_a_replayed_step(ways: dict[str, float]) -> None:
    """Up to the next ids, however they are chosen."""
    found = step(8, ways)
    assert [list(one.shape) for one in found.made] == [[8, RELEASE.hidden_size], [2, 8]]
    assert found.attends == LAYERS
    assert len(found.launches) == 17 * LAYERS + 2  # and the last norm, and the head


def operations(config: ModelConfig, form: Format | None) -> Ran:
    """What is not replayed: chunks of prompts, texts to read, commits that ride along, single steps, and heads."""

    def ids(n: int) -> Tensor:
        return torch.empty(n, dtype=torch.int64, device=CARD)

    def prepare(model: Transformer) -> Callable[[], list[Tensor]]:
        one, two = model.new_cache(), model.new_cache()
        soft = torch.empty(256, config.hidden_size, device=CARD)
        masks = torch.empty(2, config.vocab_size, dtype=torch.bool, device=CARD)
        uniforms = torch.empty(2, dtype=torch.float64, device=CARD)

        def compute() -> list[Tensor]:
            model([Segment(ids(512), one, "encode", quiet=True)])
            denoise = Segment(ids(256), one, "denoise", soft), Segment(ids(64), two, "denoise")
            model(
                [
                    Segment(ids(37), one, "encode"),
                    Segment(ids(1), two, "encode"),
                    Segment(ids(9), one, "read"),
                    *denoise,
                ]
            )
            model([Segment(ids(30), one, "encode", quiet=True), denoise[0]])
            hidden = model([Segment(ids(1), cache, "encode") for cache in (one, two)])
            model.vocab_head(hidden, VocabQuery(top=3, targets=ids(2)))
            model.vocab_head(hidden, VocabQuery(uniforms, masks, uniforms, want_soft=True, mask=ids(2)))
            return [model.logits(hidden)]

        return compute

    return ran(config, form, prepare)


FORMATS: tuple[Format | None, ...] = (None, "fp8", "int8", "int4")
PASSES: dict[str, Callable[[Format | None], Ran]] = {
    "a replayed pass": lambda form: replayed(2, SHORT, form),
    "a replayed pass of one row": lambda form: replayed(1, SHORT, form),
    "a canvas's last": lambda form: replayed(2, SHORT, form, want_soft=False),
    "operation by operation": lambda form: operations(SHORT, form),
    "a step": lambda form: step(2, {}, SHORT, form),
}


def form_of(launch: Launch) -> tuple[object, ...]:
    """What Triton compiles a kernel anew for, less what follows from numbers' divisors."""
    kinds = [one.dtype if isinstance(one, Tensor) else type(one) for one in launch.arguments]
    return launch.name, *kinds, *sorted((name, str(value)) for name, value in launch.constants.items())


@cache
def compiled() -> set[tuple[object, ...]]:
    with patch.object(release, "EXPERTS", SHORT.num_experts):
        return {form_of(launch) for launch in release.launches(90, TABLE)}


def supposed(found: Ran) -> None:
    """That all kernels are handed what they suppose, and are compiled so by the compile check."""
    for launch in found.launches:
        free = 3 if "attend" in launch.name else 0  # it is told the strides of queries, keys and values
        for place, argument in enumerate(launch.arguments):
            if isinstance(argument, Tensor):
                assert argument.device.type == "cuda", f"argument {place} of {launch.name} is on the host"
                assert place < free or argument.is_contiguous(), f"argument {place} of {launch.name} is not contiguous"
        if form_of(launch) not in compiled():
            raise AssertionError(f"{launch.name} is not compiled as {form_of(launch)}")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", PASSES)
def test_kernels_are_handed_what_they_suppose_and_compiled(kind: str, form: Format | None) -> None:
    supposed(PASSES[kind](form))


NONZERO = torch.ops.aten.nonzero  # as x.nonzero(), which looks for a driver first
MISTAKES: dict[str, tuple[Callable[[Tensor], Tensor], type[Exception], str]] = {
    "waiting for a number": (lambda h: h * h.amax().item(), DataDependentOutputException, "_local_scalar_dense"),
    "a choice by a number": (lambda h: h if h.amax() > 0 else -h, DataDependentOutputException, "_local_scalar_dense"),
    "a shape that depends on numbers": (
        lambda h: h * len(torch.ops.aten.nonzero(h)),
        DynamicOutputShapeException,
        "nonzero",
    ),
    "a number on the host": (lambda h: h * torch.tensor(2.0), AssertionError, "on the cpu"),
    "a list from the host": (lambda h: h * torch.tensor([2.0], device=h.device), AssertionError, "on the cpu"),
    "a copy to the host": (lambda h: h.to("cpu").to(h.device), AssertionError, "on the cpu"),
    "two devices": (lambda h: h + torch.ones(h.shape), Exception, "device|on the cpu"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_middle_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, error, said = MISTAKES[mistake]
    right = TritonOps.router
    monkeypatch.setattr(TritonOps, "router", lambda self, h, *others: right(self, change(h), *others))
    with pytest.raises(error, match=said):
        replayed(1, SHORT)


def test_a_tensor_that_stayed_on_the_host_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch does not look at what a kernel is handed."""
    scalar, moved = torch.ones(1, dtype=torch.bfloat16), on_card

    def forgotten(model: Transformer, ops: TritonOps) -> Transformer:
        model = moved(model, ops)
        model.layers[0].layer_scalar = scalar
        return model

    monkeypatch.setattr(sys.modules[__name__], "on_card", forgotten)
    with pytest.raises(AssertionError, match="of layer tail is on the host"):
        supposed(replayed(1, SHORT))

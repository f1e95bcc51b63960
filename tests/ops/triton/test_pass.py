"""A whole forward of the release's shape on tensors without values: nothing in it may wait for one, and all that it
launches is known to the compile check."""

from __future__ import annotations

import pytest
import torch

from ops.triton import release
from scumble import GenerationConfig
from scumble.bench.shapes import RELEASE
from scumble.decode import make_request
from scumble.decode.constraint import Restriction
from scumble.decode.steps import Start
from scumble.diffusion import SeededNoise, start_canvas
from scumble.engine.choose import TokenChoice
from scumble.engine.row import Row
from scumble.engine.slots import Slot, Slots
from scumble.engine.static_pass import Arena, Asked, StaticPass, StaticStep
from scumble.model import Segment, Transformer
from scumble.ops import VocabQuery
from scumble.ops.triton.launch import TABLE, recorded
from scumble.ops.triton.ops import TritonOps

META = torch.device("meta")


def launched(segments: int, tokens: int) -> list[str]:
    """Names of the operations that a pass over so many canvases launches, in order."""
    with META:
        model = Transformer(RELEASE).to(torch.bfloat16).use(TritonOps())
    batch = []
    for _ in range(segments):
        cache = model.new_cache()
        soft = torch.empty(tokens, RELEASE.hidden_size, device=META)
        batch.append(Segment(torch.empty(tokens, dtype=torch.int64, device=META), cache, "denoise", soft))
    with recorded(90) as launches:
        hidden = model(batch)
        uniforms = torch.empty(hidden.shape[0], dtype=torch.float64, device=META)
        model.vocab_head(hidden, VocabQuery(0.6, uniforms=uniforms, want_soft=True))
    return [launch.name for launch in launches]


def test_a_pass_waits_for_nothing_and_rows_share_their_launches() -> None:
    """Attention is launched row by row; all else, what mixes soft embeddings in too, once for all rows."""
    one, four = launched(1, 256), launched(4, 256)
    layers = len(RELEASE.layers)
    for name in ("router", "up plain", "down plain", "attention tail", "layer tail"):
        assert one.count(name) == four.count(name) == layers
    assert one.count("vocab") == four.count("vocab")
    assert sum(name.startswith("attend") for name in four) == 4 * layers


def replayed(rows: int) -> list[str]:
    """The same of a pass that is captured: with noise, sampler and stopping rule, contexts in pages."""
    with META:
        model = Transformer(RELEASE).to(torch.bfloat16).use(TritonOps())
    config = GenerationConfig(max_denoising_steps=16, seed=1)
    row = Row(make_request([5, 6, 7], config, {}, RELEASE), lambda event: None)
    noise = SeededNoise(1)
    start = Start(start_canvas(noise, 0, RELEASE.canvas_length, RELEASE.vocab_size), noise, Restriction())
    slots = Slots.of([Slot(row, 0, 0, start) for _ in range(rows)], RELEASE.vocab_size, META)
    static = StaticPass(model, Arena(model, rows, 1024, RELEASE.canvas_length), slots, True, 16)
    with recorded(90) as launches:
        done = static.compute()
    assert done.flags.shape == (3, rows)
    return [launch.name for launch in launches]


def test_a_replayed_pass_waits_for_nothing_either_and_rows_share_its_attention() -> None:
    one, four = replayed(1), replayed(4)
    assert len(one) == len(four)
    assert sum(name.startswith("attend") for name in four) == len(RELEASE.layers)
    assert set(four) <= {launch.name for launch in release.launches(90, TABLE)}


@pytest.mark.parametrize("ways", [{}, {"top_k": 40}, {"temperature": 0}], ids=["draw", "draw among the best", "argmax"])
def test_neither_does_a_replayed_step(ways: dict[str, float]) -> None:
    """Up to the next ids, however they are chosen."""
    with META:
        model = Transformer(RELEASE).to(torch.bfloat16).use(TritonOps())
    configs = [GenerationConfig(decoder="autoregressive", **ways) for _ in range(8)]
    asked = Asked([torch.empty(1, dtype=torch.int64, device=META)] * 8, [], TokenChoice.of(configs, META), [0.5] * 8)
    static = StaticStep(model, Arena(model, 8, 1024, RELEASE.canvas_length), asked)
    with recorded(90) as launches:
        hidden, found = static.compute()
    assert hidden.shape == (8, RELEASE.hidden_size)
    assert found.shape == (2, 8)
    names = [launch.name for launch in launches]
    assert sum(name.startswith("step attend") for name in names) == len(RELEASE.layers)
    assert len(names) == 17 * len(RELEASE.layers) + 2  # and the last norm, and the head
    assert set(names) <= {launch.name for launch in release.launches(90, TABLE)}


def test_waiting_for_a_number_in_the_middle_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = TritonOps.router
    monkeypatch.setattr(TritonOps, "router", lambda self, h, *others: right(self, h * h.amax().item(), *others))
    with pytest.raises(RuntimeError, match="meta tensors"):
        launched(1, 16)


def test_what_it_launches_is_what_the_compile_check_compiles() -> None:
    assert set(launched(1, 256)) <= {launch.name for launch in release.launches(90, TABLE)}

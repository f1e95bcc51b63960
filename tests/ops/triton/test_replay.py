"""Passes that are replayed give what passes operation by operation give, bit for bit, and wait for nothing.

Here by Triton's interpreter, where a replay is the same pass over the same memory once more. That a captured graph is
that pass is checked on a card (benchmarks/gpu_day.py, and ops/triton/selfcheck.py for every operation).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch

from engine.test_sync import NoWaiting, not_failed
from ops.triton import interpreter
from ops.triton.conftest import HAS_CARD
from scumble import GenerationConfig
from scumble.decode import make_request
from scumble.engine import Engine, replay, static_pass
from scumble.ops.triton.ops import TritonOps
from tiny import FULL, SLIDING, prompt, run, tiny_config, tiny_model

LAYERS = (SLIDING, FULL)
FREE = {"ignore_eos": True, "canvas_length": 4, "max_new_tokens": 8, "max_denoising_steps": 4}


def engine(**rules: object) -> Engine:
    made = Engine(tiny_model(layers=LAYERS).use(TritonOps()))
    for name, value in rules.items():
        setattr(made.runner.replays, name, value)
    return made


def asked(*configs: GenerationConfig, length: int = 7):
    made = tiny_config(layers=LAYERS)
    return [make_request(prompt(length + i, i), config, {}, made) for i, config in enumerate(configs)]


ROWS = (
    GenerationConfig(seed=1, commit="sample", entropy_bound=0.4, **FREE),
    GenerationConfig(seed=2, temperature=0, **(FREE | {"max_denoising_steps": 5})),
)


def test_replayed_passes_are_the_eager_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows with settings and contexts of their own, over a canvas and its commit into the next one."""
    made = engine()
    passes = []
    original = replay.Replays.run

    def counted(self, slots):
        done = original(self, slots)
        passes.append(done is not None)
        return done

    monkeypatch.setattr(replay.Replays, "run", counted)
    replayed = run(made, asked(*ROWS))
    eager = run(engine(is_off=True), asked(*ROWS))
    assert sum(passes[: len(passes) // 2 + 1]) >= 3
    for one, two in zip(replayed, eager, strict=True):
        assert one["ids"] == two["ids"]
        for here, there in zip(one["passes"], two["passes"], strict=True):
            assert torch.equal(here.entropy, there.entropy)
            assert torch.equal(here.proposal, there.proposal)
            assert torch.equal(here.canvas_out, there.canvas_out)


@pytest.mark.slow
def test_the_same_memory_serves_other_canvases() -> None:
    """What lay in a pass's buffers before leaves no trace in it."""
    made = engine()
    first, second = asked(ROWS[0], length=5), asked(ROWS[1], length=9)
    run(made, first)
    assert len(made.runner.replays.passes) >= 1
    again = run(made, second)[0]["ids"]
    assert again == run(engine(is_off=True), second)[0]["ids"]


@pytest.mark.slow
def test_the_arena_grows_and_serves_shorter_contexts_as_well() -> None:
    made = engine()
    for length, bucket in ((7, 16), (30, 64), (7, 64)):
        requests = asked(GenerationConfig(seed=length, **(FREE | {"max_new_tokens": 4})), length=length)
        found = run(made, requests)[0]["ids"]
        assert made.runner.replays.arena.bucket == bucket
        assert found == run(engine(is_off=True), requests)[0]["ids"]


@pytest.mark.skipif(HAS_CARD, reason="there a graph could not be captured")
def test_a_pass_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it: layers, attention over pages, head, noise, rules. Kernels are not looked into."""
    original, watched = static_pass.StaticPass.compute, []

    def compute(self):
        with NoWaiting():
            watched.append(1)
            return original(self)

    launch = interpreter.interpreter.GridExecutor.__call__

    def unwatched(self, *arguments, **options):
        with torch._C.DisableTorchFunction(), torch.utils._python_dispatch._disable_current_modes():
            return launch(self, *arguments, **options)

    monkeypatch.setattr(static_pass.StaticPass, "compute", compute)
    monkeypatch.setattr(interpreter.interpreter.GridExecutor, "__call__", unwatched)
    made = engine()
    for request in asked(*ROWS[:2]):
        made.add(request, not_failed)
    while made.has_work and len(watched) < 2:
        made.step()
    assert watched
    assert not made.runner.replays.is_off


def test_replayed_steps_are_the_eager_ones() -> None:
    """Token by token, from contexts of unequal lengths, beyond the window; the caches take up what they would have."""
    config = GenerationConfig(decoder="autoregressive", max_new_tokens=4, ignore_eos=True, seed=3)
    made, plain = engine(), engine(is_off=True)
    replayed, eager = (run(one, asked(config, config)) for one in (made, plain))
    assert [row["ids"] for row in replayed] == [row["ids"] for row in eager]
    assert any(key[:2] == ("step", 2) for key in made.runner.replays.passes)
    caches = []
    for one in (engine(), engine(is_off=True)):
        (row,) = [one.add(request, not_failed) for request in asked(replace(config, max_new_tokens=9))]
        for _ in range(5):
            one.step()
        caches.append(row.cache)
    assert caches[0].length == caches[1].length > 7
    for here, there in zip(caches[0].layers, caches[1].layers, strict=True):
        assert here.first == there.first
        for one, two in ((here.keys, there.keys), (here.values, there.values)):
            assert torch.equal(one[:, here.start : here.end], two[:, there.start : there.end])


def test_what_needs_the_host_is_not_replayed() -> None:
    masked = make_request(prompt(5), ROWS[0], {}, tiny_config(), first=[4, 9])
    unequal = asked(GenerationConfig(seed=1, **(FREE | {"canvas_length": 3})), ROWS[0])
    for requests, is_fit in (([masked], False), (unequal, False), (asked(*ROWS), True)):
        made = Engine(tiny_model())
        for request in requests:
            made.add(request, not_failed)
        for _ in range(2):
            made.step()
        assert made.stats.slots == len(requests)
        assert replay.fits(made.runner.denoiser.together(made.scheduler.running)) == is_fit


def test_without_memory_passes_run_as_ever_and_it_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class TooLarge(static_pass.Arena):
        def __init__(self, *arguments):
            raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(replay, "Arena", TooLarge)
    made, config = engine(), replace(ROWS[0], max_new_tokens=4, max_denoising_steps=3)
    found = run(made, asked(config))[0]["ids"]
    assert not made.runner.replays.passes
    assert caplog.text.count("no memory for captured passes of 1 rows") == 1
    assert found == run(engine(is_off=True), asked(config))[0]["ids"]


def test_where_a_larger_arena_has_no_room_the_smaller_one_stays() -> None:
    replays = engine().runner.replays
    small = replays._room(1, 16)
    replays.limit = small.size + 1
    assert replays._room(1, 1024) is None
    assert replays._room(8, 16) is None
    assert replays._room(1, 16) is small
    replays.limit = math.inf
    assert (replays._room(8, 16).rows, replays._room(1, 1024).rows) == (8, 8), "what fits several rows goes on doing so"


class Streams:
    """Stands in for torch.cuda: streams, and captures that end as torch's do, which put the stream back only if there
    was no error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.current, self.log = "default", []
        for name in ("set_stream", "device", "stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream(self, self.current))
        monkeypatch.setattr(torch.cuda, "Stream", lambda: Stream(self, "side"))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)

    def set_stream(self, stream: Stream) -> None:
        self.current = stream.name

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        yield

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: object, pool: str, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        assert (pool, capture_error_mode) == ("pool", "thread_local")
        before, self.current = self.current, stream.name
        self.log.append("capture")
        yield
        self.current = before


@dataclass
class Stream:
    streams: Streams
    name: str

    def wait_stream(self, other: Stream) -> None:
        self.streams.log.append(f"{self.name} waits for {other.name}")


@pytest.mark.parametrize("fails_at", [None, 1, 2], ids=["no error", "before the capture", "in the capture"])
def test_a_capture_runs_once_before_and_leaves_the_stream_as_it_was(fails_at, monkeypatch) -> None:
    streams, ran = Streams(monkeypatch), []

    class Once:
        def compute(self) -> None:
            ran.append(streams.current)
            streams.log.append("computes")
            if len(ran) == fails_at:
                raise RuntimeError("operation not permitted when stream is capturing")

    graphs = replay.Graphs(torch.device("cuda", 0))
    with contextlib.nullcontext() if fails_at is None else pytest.raises(RuntimeError, match="not permitted"):
        graphs.captured(Once())
    assert streams.current == "default"
    assert set(ran) == {"side"}
    whole = ["side waits for default", "computes", "default waits for side", "capture", "computes"]
    assert streams.log == (whole[:3] if fails_at == 1 else whole)


def test_a_caller_in_torchs_inference_mode_leaves_nothing_behind_that_others_could_not_use() -> None:
    made, config = engine(), replace(ROWS[0], max_new_tokens=4, max_denoising_steps=3)
    with torch.inference_mode():
        first = run(made, asked(config))
    assert made.runner.replays.passes
    assert first[0]["ids"] == run(made, asked(config))[0]["ids"]

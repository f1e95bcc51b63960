"""transformers beside us: the very same weights, whole runs, and a report that says so."""

from __future__ import annotations

import time

import pytest
import torch

pytest.importorskip("transformers")

from scumble.bench import run
from scumble.bench.peer import Peer
from scumble.bench.run import Options, run_bench
from scumble.bench.shapes import random_prompt
from scumble.bench.subject import Subject


def test_the_same_weights_and_the_same_work() -> None:
    with Subject(shape="tiny", dtype="float32", layers=2) as subject:
        folder = subject.folder()
        peer = Peer.load(folder, torch.float32, torch.device("cpu"))
        prompt = random_prompt(subject.config, 12, 0)
        check = peer.check(subject.llm.model, prompt, random_prompt(subject.config, 32, 1))
        assert check["ours_and_theirs"] < 1e-4 * check["scale"]  # float32 on both sides
        assert check["encoder_and_causal"] < 1e-4 * check["scale"]
        assert check["same_argmax"] == 1
        generated = peer.generate(prompt, 3, 64, time.perf_counter)
        assert generated.passes == (3, 3)
        assert generated.valid == 64
        assert len(generated.between) == 4
        stepped = peer.steps(prompt, 5, time.perf_counter)
        assert (stepped.valid, len(stepped.steps)) == (5, 4)
        assert peer.prefill(prompt, time.perf_counter) > 0
    assert not folder.exists()  # a temporary one


def test_the_comparison_in_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    plain = run.interleave
    monkeypatch.setattr(run, "interleave", lambda actions, *a, **k: order.extend(actions) or plain(actions, *a, **k))
    sizes = {"passes": 2, "prompt_tokens": 8, "new_tokens": 8, "repeats": 1}
    options = Options(mode="fixed", quick=True, memory=False, against="transformers", **sizes)
    peer = run_bench(Subject(shape="tiny", layers=1), options)["peer"]
    assert order == ["fixed", "peer fixed", "steps", "peer steps", "prefill", "peer prefill", "stages"]
    assert set(peer["seconds"]) == {"pass", "prefill", "autoregressive_step", "generation"}
    for row in peer["seconds"].values():
        assert row["ratio"] == pytest.approx(row["theirs"]["median"] / row["ours"]["median"])
    for model, name in peer["experts_implementation"].items():
        tried = peer["experts_tried_seconds"][model]
        assert tried[name] == min(tried.values())
    assert peer["dtype"] == "bfloat16"

"""Nothing in a pass waits for the device, but for the one read of flags at its end.

(The tiled vocabulary operator of ops/tiled.py reads which tiles it needs for its samples; the plain one stands in for
it here, as a GPU's kernel does there.)

Without a GPU: the pass runs under a dispatch mode that refuses every operation whose result the host would have to
wait for. It is tested itself on such operations, and on a pass into which one was put.
"""

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from scumble import GenerationConfig
from scumble.decode import make_request
from scumble.engine import Engine, Failed
from scumble.engine.denoise import Denoiser
from scumble.ops import ReferenceOps, vocab_head_reference
from tiny import prompt, tiny_model

from .ways import ClaimsInvariance

# Their results' values or shapes depend on data, so a GPU's host waits for them.
WAITING = {
    "_local_scalar_dense", "item", "is_nonzero", "nonzero", "nonzero_numpy", "masked_select", "bincount", "unique",
    "_unique", "_unique2", "unique_dim", "unique_consecutive", "equal", "allclose", "repeat_interleave",
}  # fmt: skip


class NoReading(TorchFunctionMode):
    """What reads a tensor without an operation."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu):
            raise AssertionError(f"the host waits for {func}")
        return func(*args, **(kwargs or {}))


class NoWaiting(TorchDispatchMode):
    def __enter__(self):
        self.reading = NoReading()
        self.reading.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.reading.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in WAITING or any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in indices):
            raise AssertionError(f"the host waits for {func}")
        return func(*args, **(kwargs or {}))


X = torch.tensor([3, 0, 5])


@pytest.mark.parametrize(
    "waits",
    [
        lambda: X[0].item(), lambda: bool(X.any()), lambda: X.tolist(), lambda: X.nonzero(), lambda: X[X > 1],
        lambda: X.bincount(), lambda: X.unique(), lambda: X.clone().index_put_((X > 1,), X[:1]),
        lambda: X.numpy(), lambda: torch.equal(X, X.clone()), lambda: float(X.sum()), lambda: X.masked_select(X > 1),
        lambda: [int(x) for x in X],
    ],
)  # fmt: skip
def test_what_waits_is_noticed(waits):
    with pytest.raises(AssertionError, match="the host waits"), NoWaiting():
        waits()


def not_failed(event):
    if isinstance(event, Failed):
        raise event.error


def in_flight(engine: Engine) -> Engine:
    """Canvases of unequal lengths, temperatures and rules, some pinned, some greedy, in the middle of denoising."""
    free = {"ignore_eos": True, "max_new_tokens": 16, "max_denoising_steps": 9}
    rows = [
        (GenerationConfig(seed=1, **free), {}),
        (GenerationConfig(seed=2, temperature=0, canvas_length=5, **free), {}),
        (GenerationConfig(seed=3, best_of=2, temperature=0.5, stability="argmax_is_canvas", **free), {}),
        (GenerationConfig(seed=4, commit="sample", **free), {"pinned": {2: 7}, "draft": prompt(6)}),
        (GenerationConfig(seed=5, **free), {"first": [4, 9, 11]}),
    ]
    for place, (config, inputs) in enumerate(rows):
        request = make_request(prompt(3 + place), config, {}, engine.model.config, **inputs)
        engine.add(request, not_failed, drafts=place % 2 == 0)
    for _ in range(3):
        engine.step()
    assert len(engine.runner.denoiser.slots(engine.scheduler.running)) == 6
    return engine


@pytest.fixture
def watched(monkeypatch):
    """An engine whose passes over canvases run without waiting."""
    original = Denoiser.compute

    def plain(self, hidden, embedding, query, *, cap, head):
        assert head is None
        assert not query.classes
        return vocab_head_reference(hidden, embedding, query, cap=cap)

    monkeypatch.setattr(ReferenceOps, "vocab_head", plain)

    def compute(self, slots, hidden):
        with NoWaiting():
            return original(self, slots, hidden)

    monkeypatch.setattr(Denoiser, "compute", compute)
    return monkeypatch


def test_a_pass_waits_for_nothing(watched, monkeypatch):
    seen = []
    original = torch.Tensor.tolist
    engine = in_flight(Engine(tiny_model().use(ClaimsInvariance())))
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: seen.append(self.shape) or original(self))
    engine.step()
    assert [shape for shape in seen if len(shape) == 2] == [(3, 6)], "the flags of six canvases are read at once"
    while engine.has_work:
        engine.step()


def test_a_wait_that_is_put_into_a_pass_is_noticed(watched):
    engine = in_flight(Engine(tiny_model().use(ClaimsInvariance())))
    slots = engine.runner.denoiser.together(engine.scheduler.running)
    rules, hidden = type(slots.rules), torch.zeros(sum(slot.length for slot in slots.slots), 32)
    original = rules.accept

    def accept(self, proposal):
        if proposal.entropy.max().item() < 0:
            return original(self, proposal)
        return original(self, proposal)

    watched.setattr(rules, "accept", accept)
    with pytest.raises(AssertionError, match=r"the host waits for aten\._local_scalar_dense"):
        engine.runner.denoiser.compute(slots, hidden)

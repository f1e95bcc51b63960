"""Before kernels serve a model on a card, each proves itself there: never wrong, at worst slower.

For every operation, on seeded inputs with the model's own sizes (few tokens, experts, keys and ids):
  - its result is the plain torch one's, in float32, within the roundings of the model's dtype;
  - no number is missing: all new memory is filled with NaN first;
  - once more gives the same bits, and so do a few of the tokens alone;
  - on a card, a captured CUDA graph gives the same bits when it is replayed.
What fails is served by the reference, with one line in the log. The verdict is kept in the user's cache folder, under
the card, its driver, torch, Triton, the kernels' source and the model's sizes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import triton
from torch import Tensor

from scumble.config import ModelConfig
from scumble.ops.reference import REFERENCE
from scumble.ops.triton import cases
from scumble.ops.triton.cases import Case, of_format, of_operation
from scumble.ops.triton.ops import OPERATIONS, TritonOps

log = logging.getLogger("scumble")

TOLERANCE = {torch.bfloat16: 8e-3, torch.float32: 1e-4}  # ‖difference‖ / ‖reference‖

# The same for formats in which activations are rounded too, of which the reference knows nothing.
ROUNDING = {"fp8": 6e-2, "int8": 3e-2, "int4": 1e-2, "nvfp4": 0.2}


def refused(device: torch.device, dtype: torch.dtype, config: ModelConfig) -> dict[str, str]:
    """Operations that may not serve, and why not each. From the cache where this was asked before."""

    def look() -> dict[str, str]:
        verdict = examine(device, dtype, config)
        for name, why in verdict.items():
            log.warning("operation %s is served by torch on this card: %s", name, why)
        return verdict

    return _kept(f"{_fingerprint(device, dtype, config)}.json", look)


def format_fault(device: torch.device, dtype: torch.dtype, config: ModelConfig, form: str) -> str | None:
    """Why products with weights of a format may not serve; None: they may. From the cache, as `refused`."""

    def look() -> dict[str, str]:
        why = examine_format(device, dtype, config, form)
        return {} if why is None else {form: why}

    return _kept(f"{_fingerprint(device, dtype, config)}-{form}.json", look).get(form)


def _kept(name: str, look: Callable[[], dict[str, str]]) -> dict[str, str]:
    """A verdict from the cache, or what `look` finds, for the next time."""
    path = _cache_folder() / name
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(kept, dict):
            return {name: str(why) for name, why in kept.items()}
    verdict = look()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(verdict), encoding="utf-8")
        draft.replace(path)
    return verdict


def examine(device: torch.device, dtype: torch.dtype, config: ModelConfig) -> dict[str, str]:
    """The checks themselves. Any exception of a kernel is a reason too: a compiler's, or too little shared memory."""
    verdict = {}
    for name in OPERATIONS:
        why = _tried(device, lambda name=name: _fault(of_operation(name, device, dtype, config), TOLERANCE[dtype]))
        if why is not None:
            verdict[name] = why
    return verdict


def examine_format(device: torch.device, dtype: torch.dtype, config: ModelConfig, form: str) -> str | None:
    """The checks of a format's products, dense and of experts, with weights in every way in which it stores them."""
    return _tried(device, lambda: _fault(of_format(device, dtype, config, form), ROUNDING[form]))


def _tried(device: torch.device, check: Callable[[], str | None]) -> str | None:
    """What a check finds, on seeded numbers and in memory full of NaN; any exception is a reason too."""
    cards = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cards), _poisoned(), torch.no_grad():
        torch.manual_seed(0)
        try:
            return check()
        except Exception as error:  # whatever it is, the reference serves
            return f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:200] if str(error) else ''}"


def _fault(tried: Iterator[tuple[Tensor, Case]], tolerance: float) -> str | None:
    """What is wrong with an operation, or None."""
    ops = TritonOps()
    for x, case in tried:
        ours = case(ops, x, _same)
        wanted = case(REFERENCE, x.float(), torch.Tensor.float)
        for one, two in zip(ours, wanted, strict=True):
            if one.is_floating_point() and not bool(torch.isfinite(one).all()):
                return "results are missing or not finite"
            error = float((one.double() - two.double()).norm() / two.double().norm().clamp_min(1e-30))
            if not error <= tolerance:
                return f"its results are off by {error:.1e} of their size, allowed are {tolerance:.0e}"
        if not _equal(ours, case(ops, x, _same)):
            return "the same inputs give other bits the second time"
        alone = case(ops, x[-cases.ALONE :].contiguous(), _same)
        if not _equal(tuple(one[-cases.ALONE :] for one in ours), alone):
            return "a token's bits depend on the tokens beside it"
        if ours[0].device.type == "cuda" and not _equal(ours, _replayed(partial(case, ops, x, _same))):
            return "a captured graph gives other bits"
    return None


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _equal(one: tuple[Tensor, ...], two: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def _replayed(call: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    for one in out:
        one.zero_()
    graph.replay()
    torch.cuda.synchronize()
    return out


@contextlib.contextmanager
def _poisoned() -> Iterator[None]:
    """Inside, torch fills all new memory: with NaN, or the largest whole number."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "scumble" / "triton"


def _driver() -> str:
    """What the kernel says of NVIDIA's driver, which torch does not tell; empty where it says nothing."""
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _fingerprint(device: torch.device, dtype: torch.dtype, config: ModelConfig) -> str:
    """Of all that a verdict depends on."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.iterdir()):
        if path.suffix in (".py", ".toml"):
            digest.update(path.read_bytes())
    card = torch.cuda.get_device_properties(device) if device.type == "cuda" else "none"
    digest.update(f"{card} {_driver()} {torch.__version__} {triton.__version__} {dtype} {config}".encode())
    return digest.hexdigest()[:32]

"""Before kernels serve a model on a card, each proves itself there: never wrong, at worst slower.

For every operation, on seeded inputs with the model's own sizes (few tokens, experts, keys and ids):
  - its result is the plain torch one's, in float32, within the roundings of the model's dtype;
  - no number is missing: all new memory is filled with NaN first;
  - once more gives the same bits, and so do a few of the tokens alone;
  - on a card, a captured CUDA graph gives the same bits when it is replayed;
  - all of this holds of one token too: operations have kernels of their own for steps.
What fails is served by the reference, with one line in the log. The verdict is kept in the user's cache folder, under
the card, its driver, torch, Triton, the kernels' source and the model's sizes; not where something raised, which may
have had a reason that goes away (no memory, no C compiler). After some faults, an address out of range for instance,
CUDA lets a process use the card no more: then loading ends, with what to do.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
import triton
from torch import Tensor

from scumble.config import ModelConfig
from scumble.errors import ScumbleError
from scumble.ops.reference import REFERENCE
from scumble.ops.triton import ahead, cases
from scumble.ops.triton.cases import Case, of_format, of_operation
from scumble.ops.triton.launch import Launch, column, recorded
from scumble.ops.triton.ops import OPERATIONS, TritonOps

log = logging.getLogger("scumble")

TOLERANCE = {torch.bfloat16: 8e-3, torch.float32: 1e-4}  # ‖difference‖ / ‖reference‖

# The same for formats in which activations are rounded too, of which the reference knows nothing.
ROUNDING = {"fp8": 6e-2, "int8": 3e-2, "int4": 1e-2, "nvfp4": 0.2}


class Raised(str):
    """A reason that is an exception's: it may not be there the next time."""


def refused(device: torch.device, dtype: torch.dtype, config: ModelConfig) -> dict[str, str]:
    """Operations that may not serve, and why not each. From the cache where this was asked before."""

    def look() -> dict[str, str]:
        _compile_ahead(device, OPERATIONS, dtype, config)
        return examine(device, dtype, config)

    verdict = _kept(f"{_fingerprint(device, dtype, config)}.json", look)
    for name, why in verdict.items():
        log.warning("operation %s is served by torch on this card: %s", name, why)
    return verdict


def format_fault(device: torch.device, dtype: torch.dtype, config: ModelConfig, form: str) -> str | None:
    """Why products with weights of a format may not serve; None: they may. From the cache, as `refused`."""

    def look() -> dict[str, str]:
        _compile_ahead(device, [form], dtype, config)
        why = examine_format(device, dtype, config, form)
        return {} if why is None else {form: why}

    return _kept(f"{_fingerprint(device, dtype, config)}-{form}.json", look).get(form)


def _kept(name: str, look: Callable[[], dict[str, str]]) -> dict[str, str]:
    """A verdict from the cache, or what `look` finds, for the next time."""
    try:
        path = _cache_folder() / name
    except RuntimeError:  # a user without a home
        return look()
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(kept, dict):
            return {name: str(why) for name, why in kept.items()}
    verdict = look()
    if any(isinstance(why, Raised) for why in verdict.values()):
        return verdict
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(verdict), encoding="utf-8")
        draft.replace(path)
    return verdict


def examine(
    device: torch.device, dtype: torch.dtype, config: ModelConfig, names: Sequence[str] | None = None
) -> dict[str, str]:
    """The checks themselves, of all operations or of some. Any exception of a kernel is a reason too: a compiler's, or
    too little shared memory. Raises ScumbleError where the card cannot be used any more."""
    verdict = {}
    for name in OPERATIONS if names is None else names:
        why = _tried(
            f"operation {name}",
            device,
            lambda name=name: _fault(of_operation(name, device, dtype, config), TOLERANCE[dtype], with_steps=True),
        )
        if why is not None:
            verdict[name] = why
    return verdict


def examine_format(device: torch.device, dtype: torch.dtype, config: ModelConfig, form: str) -> str | None:
    """The checks of a format's products, dense and of experts, with weights in every way in which it stores them."""
    check = partial(_fault, of_format(device, dtype, config, form), ROUNDING[form], with_steps=False)
    return _tried(f"products in {form}", device, check)


def launches(checked: Iterable[str], arch: int, dtype: torch.dtype, config: ModelConfig) -> list[Launch]:
    """What the checks of some operations and formats launch, on tensors without memory."""
    nowhere = torch.device("meta")
    ops = TritonOps(device=nowhere)
    with recorded(arch) as made, torch.no_grad():
        for name in checked:
            of = of_format(nowhere, dtype, config, name) if name in ROUNDING else None
            with contextlib.suppress(Exception):  # where it reads a number, for one; what it is will show in the check
                for x, case in of or of_operation(name, nowhere, dtype, config):
                    for tokens in (x, x[-cases.ALONE :], x[-1:]):
                        case(ops, tokens, _same)
    return made


def _compile_ahead(device: torch.device, checked: Iterable[str], dtype: torch.dtype, config: ModelConfig) -> None:
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        ahead.compile_ahead(launches(checked, column(capability), dtype, config), 10 * capability[0] + capability[1])


def _tried(what: str, device: torch.device, check: Callable[[], str | None]) -> str | None:
    """What a check finds, on seeded numbers and in memory full of NaN; any exception is a reason too."""
    with torch.random.fork_rng(devices=[]), _poisoned(), torch.no_grad():
        torch.default_generator.manual_seed(0)
        try:
            return check()
        except Exception as error:  # whatever it is, the reference serves
            lines = str(error).strip().splitlines()
            if not _is_usable(device):
                raise ScumbleError(
                    f"{what} made the card fault in its check ({lines[0][:200] if lines else type(error).__name__}), "
                    "and this process cannot use the card any more; start again with the environment variable "
                    "SCUMBLE_OPS=reference: then torch serves, slower, and none of these kernels runs"
                ) from error
            return Raised(f"{type(error).__name__}: {lines[-1][:200] if lines else ''}")


def _is_usable(device: torch.device) -> bool:
    """Whether this process can still use a device."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except RuntimeError:  # CUDA says the same of every later call
        return False
    return True


def _fault(tried: Iterator[tuple[Tensor, Case]], tolerance: float, with_steps: bool) -> str | None:
    """What is wrong with an operation, or None. with_steps: of one token too, for which it may have other kernels."""
    for x, case in tried:
        ours = case(ops := TritonOps(), x, _same)
        why = _fault_of_one(ops, x, case, ours, tolerance)
        if why is not None:
            return why
        alone = case(ops, x[-cases.ALONE :].contiguous(), _same)
        if not _equal(tuple(one[-cases.ALONE :] for one in ours), alone):
            return "a token's bits depend on the tokens beside it"
        if not with_steps:
            continue
        last = x[-1:].contiguous()
        why = _fault_of_one(ops, last, case, case(ops, last, _same), 2 * tolerance)  # fewer numbers, less of a mean
        if why is not None:
            return f"of one token: {why}"
    return None


def _fault_of_one(ops: TritonOps, x: Tensor, case: Case, ours: tuple[Tensor, ...], tolerance: float) -> str | None:
    """What is wrong with results for these tokens."""
    wanted = case(REFERENCE, x.float(), torch.Tensor.float)
    for one, two in zip(ours, wanted, strict=True):
        if one.is_floating_point() and not bool(torch.isfinite(one).all()):
            return "results are missing or not finite"
        error = float((one.double() - two.double()).norm() / two.double().norm().clamp_min(1e-30))
        if not error <= tolerance:
            return f"its results are off by {error:.1e} of their size, allowed are {tolerance:.0e}"
    if not _equal(ours, case(ops, x, _same)):
        return "the same inputs give other bits the second time"
    if ours[0].device.type == "cuda" and not _equal(ours, _replayed(partial(case, ops, x, _same))):
        return "a captured graph gives other bits"
    return None


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _equal(one: tuple[Tensor, ...], two: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def _replayed(call: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the card meanwhile
            out = call()
    finally:
        torch.cuda.set_stream(before)  # a capture that fails leaves its own stream behind
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

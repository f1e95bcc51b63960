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
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from scumble.config import ModelConfig
from scumble.ops.pages import PAGE, Pages
from scumble.ops.query import VocabQuery
from scumble.ops.reference import REFERENCE, ReferenceOps
from scumble.ops.triton.layouts import FP4_GROUP, Int4, Layout
from scumble.ops.triton.ops import OPERATIONS, TritonOps
from scumble.ops.triton.packed import Packed, PackedExperts, Rounded
from scumble.ops.triton.repacking import from_nibbles
from scumble.ops.triton.rounding import nvfp4_rows, rounded

log = logging.getLogger("scumble")

TOKENS, ALONE, KEYS, IDS, EXPERTS = 40, 4, 300, 4096, 4
TOLERANCE = {torch.bfloat16: 8e-3, torch.float32: 1e-4}  # ‖difference‖ / ‖reference‖

# The same for formats in which activations are rounded too, of which the reference knows nothing.
ROUNDING = {"fp8": 6e-2, "int8": 3e-2, "int4": 1e-2, "nvfp4": 0.2}

Cast = Callable[[Tensor], Tensor]
# What an operation makes of tokens [n, …]: results with one row a token. Weights go through the cast.
Case = Callable[[ReferenceOps, Tensor, Cast], tuple[Tensor, ...]]


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
        why = _tried(device, lambda name=name: _fault(_cases(name, device, dtype, config), TOLERANCE[dtype]))
        if why is not None:
            verdict[name] = why
    return verdict


def examine_format(device: torch.device, dtype: torch.dtype, config: ModelConfig, form: str) -> str | None:
    """The checks of a format's products, dense and of experts, with weights in every way in which it stores them."""
    return _tried(device, lambda: _fault(_format_cases(device, dtype, config, form), ROUNDING[form]))


def _tried(device: torch.device, check: Callable[[], str | None]) -> str | None:
    """What a check finds, on seeded numbers and in memory full of NaN; any exception is a reason too."""
    cards = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cards), _poisoned(), torch.no_grad():
        torch.manual_seed(0)
        try:
            return check()
        except Exception as error:  # whatever it is, the reference serves
            return f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:200] if str(error) else ''}"


def _fault(cases: Iterator[tuple[Tensor, Case]], tolerance: float) -> str | None:
    """What is wrong with an operation, or None."""
    ops = TritonOps()
    for x, case in cases:
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
        alone = case(ops, x[-ALONE:].contiguous(), _same)
        if not _equal(tuple(one[-ALONE:] for one in ours), alone):
            return "a token's bits depend on the tokens beside it"
        if x.device.type == "cuda" and not _equal(ours, _replayed(partial(case, ops, x, _same))):
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


def _cases(name: str, device: torch.device, dtype: torch.dtype, config: ModelConfig) -> Iterator[tuple[Tensor, Case]]:
    """Tokens and what to do with them, for one operation: once, or once for each kind of layer."""
    size, eps = config.hidden_size, config.rms_norm_eps

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    def tokens(width: int) -> Tensor:
        return numbers(TOKENS, width)

    match name:
        case "rms_norm":
            weight = numbers(size)
            yield tokens(size), lambda ops, x, cast: (ops.rms_norm(x, cast(weight), eps), ops.rms_norm(x, None, eps))
        case "geglu":
            yield tokens(config.intermediate_size), lambda ops, x, cast: (ops.geglu(x, x.flip(-1)),)
        case "attention_tail":
            w = [numbers(size) for _ in range(3)]
            yield (
                tokens(size),
                lambda ops, x, cast: ops.attention_tail(x, x.flip(-1), cast(w[0]), cast(w[1]), cast(w[2]), eps),
            )
        case "layer_tail":
            w = [numbers(size) for _ in range(3)]
            scalars = numbers(1), numbers(1)

            def tail(ops: ReferenceOps, x: Tensor, cast: Cast) -> tuple[Tensor, ...]:
                denoise = torch.ones(x.shape[0], 1, dtype=torch.bool, device=device)
                both, weights = (x.flip(-1), x.roll(1, -1)), (cast(w[0]), cast(w[1]), cast(w[2]))
                return (ops.layer_tail(x, both, weights, denoise, (cast(scalars[0]), cast(scalars[1])), eps),)

            yield tokens(size), tail
        case "linear":
            for outputs, inputs in ((size, config.intermediate_size), (config.intermediate_size, size)):
                matrix = numbers(outputs, inputs) / inputs**0.5
                yield tokens(inputs), lambda ops, x, cast, matrix=matrix: (ops.linear(x, cast(matrix)),)
        case "router":
            w = numbers(size), numbers(config.num_experts, size), numbers(config.num_experts)
            k = config.top_k_experts
            yield tokens(size), lambda ops, x, cast: ops.router(x, cast(w[0]), cast(w[1]), cast(w[2]), k, eps)[:2]
        case "experts":
            width, count = config.moe_intermediate_size, min(EXPERTS, config.num_experts)
            up, down = numbers(count, 2 * width, size) / size**0.5, numbers(count, size, width) / width**0.5
            k = min(2, count)

            def mixed(ops: ReferenceOps, x: Tensor, cast: Cast) -> tuple[Tensor, ...]:
                chosen, weights = _routes(x, k, count)
                return (ops.experts(x, weights, chosen, cast(up), cast(down)),)

            yield tokens(size), mixed
        case "vocab_head":
            yield _vocabulary(device, dtype, config)
        case _:
            yield from _heads(name, device, dtype, config)


def _format_cases(
    device: torch.device, dtype: torch.dtype, config: ModelConfig, form: str
) -> Iterator[tuple[Tensor, Case]]:
    """Products with matrices that were rounded to a format."""
    size, inner, width = config.hidden_size, config.intermediate_size, config.moe_intermediate_size
    count = min(EXPERTS, config.num_experts)
    k = min(2, count)

    def matrix(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype) / shape[-1] ** 0.5

    ups, downs = _specimens(matrix(count, 2 * width, size), form), _specimens(matrix(count, size, width), form)
    for up, down in zip(ups, downs, strict=True):

        def mixed(ops: ReferenceOps, x: Tensor, cast: Cast, up: Layout = up, down: Layout = down) -> tuple[Tensor, ...]:
            chosen, weights = _routes(x, k, count)
            if isinstance(ops, TritonOps):
                return (PackedExperts(up, down, Rounded())(x, weights, chosen),)
            return (ops.experts(x, weights, chosen, up.dequantized().float(), down.dequantized().float()),)

        yield torch.randn(TOKENS, size, device=device).to(dtype), mixed
    if form == "nvfp4":  # of experts alone
        return
    for outputs, inputs in ((size, inner), (inner, size)):
        for one in _specimens(matrix(outputs, inputs), form):

            def product(ops: ReferenceOps, x: Tensor, cast: Cast, one: Layout = one) -> tuple[Tensor, ...]:
                return (
                    Packed(one, Rounded())(x)
                    if isinstance(ops, TritonOps)
                    else ops.linear(x, one.dequantized().float()),
                )

            yield torch.randn(TOKENS, inputs, device=device).to(dtype), product


def _specimens(weight: Tensor, form: str) -> list[Layout]:
    """A weight in every way in which a format stores numbers."""
    plain = rounded(weight, form)
    if form != "int4":
        return [plain]
    assert isinstance(plain, Int4)
    zero = torch.randint(5, 11, plain.scale.shape, device=weight.device).float()
    packed, scale, factor = nvfp4_rows(F.pad(weight.float(), (0, -weight.shape[-1] % FP4_GROUP)))
    e2m1 = from_nibbles(packed, scale, weight.shape[-1], FP4_GROUP, factor=factor, e2m1=True)
    return [plain, replace(plain, scale=plain.scale.float(), zero=zero), e2m1]


def _routes(x: Tensor, k: int, count: int) -> tuple[Tensor, Tensor]:
    """Experts and weights [n, k] that follow from a token's number, counted from the end: the same for it alone."""
    number = torch.arange(x.shape[0], 0, -1, device=x.device)[:, None]
    chosen = (number + torch.arange(k, device=x.device)) % count
    return chosen, torch.full((x.shape[0], k), 0.5, device=x.device)


def _heads(name: str, device: torch.device, dtype: torch.dtype, config: ModelConfig) -> Iterator[tuple[Tensor, Case]]:
    """norm_rope and all ways to attend, for every kind of layer."""
    for layer in dict.fromkeys(config.layers):
        heads, groups, dim = config.num_attention_heads, layer.num_key_value_heads, layer.head_dim

        def numbers(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device).to(dtype)

        q, weight = numbers(TOKENS, heads, dim), numbers(dim)
        if name == "norm_rope":

            def rope(ops: ReferenceOps, x: Tensor, cast: Cast, weight: Tensor = weight) -> tuple[Tensor, ...]:
                table = torch.linspace(-1, 1, weight.shape[0], device=device).to(dtype).expand(x.shape[0], 1, -1)
                return (ops.norm_rope(x, cast(weight), cast(table), cast(table), config.rms_norm_eps),)

            yield q, rope
            continue
        k, v = numbers(groups, KEYS, dim), numbers(groups, KEYS, dim)
        window = config.sliding_window if layer.is_sliding else None

        if name == "attend_pages":
            yield q / dim**0.5, partial(_paged, k, v)
            continue

        def attend(
            ops: ReferenceOps, x: Tensor, cast: Cast, k: Tensor = k, v: Tensor = v, window: int | None = window
        ) -> tuple[Tensor, ...]:
            if name == "attend_all":
                return (ops.attend_all(x, cast(k), cast(v)),)
            return (ops.attend_causal(x, cast(k), cast(v), window),)

        yield q / dim**0.5, attend


def _paged(keys: Tensor, values: Tensor, ops: ReferenceOps, x: Tensor, cast: Cast) -> tuple[Tensor, ...]:
    """A row's keys and values [G, S, K] in pages that lie in reverse order."""
    if not isinstance(ops, TritonOps):
        return (ops.attend_all(x, cast(keys), cast(values)),)
    seen = keys.shape[1]
    count, position = -(-seen // PAGE), torch.arange(seen, device=x.device)
    slots = (count - 1 - position // PAGE) * PAGE + position % PAGE
    pools = []
    for part in (keys, values):
        pool = torch.empty(count * PAGE, part.shape[0], part.shape[2], dtype=part.dtype, device=x.device)
        pools.append(pool.index_copy_(0, slots, part.transpose(0, 1)))
    tables = torch.arange(count - 1, -1, -1, dtype=torch.int32, device=x.device)[None]
    low = torch.zeros(x.shape[0], dtype=torch.int32, device=x.device)
    pages = Pages(tables, low, torch.full_like(low, seen), x.shape[0], seen)
    return (ops.attend_pages(x.contiguous(), pools[0], pools[1], pages),)


def _vocabulary(device: torch.device, dtype: torch.dtype, config: ModelConfig) -> tuple[Tensor, Case]:
    """Small whole numbers: all products are exact, so ids agree. Ids go out as numbers of their own size."""
    ids, size = min(IDS, config.vocab_size), config.hidden_size
    embedding = torch.randint(-1, 2, (ids, size), device=device).to(dtype)
    x = torch.randint(-1, 2, (TOKENS, size), device=device).to(dtype)

    def head(ops: ReferenceOps, x: Tensor, cast: Cast) -> tuple[Tensor, ...]:
        uniforms = torch.arange(x.shape[0], 0, -1, device=device).double() / (TOKENS + 1)
        query = VocabQuery(uniforms=uniforms, want_soft=True)
        found = ops.vocab_head(x, cast(embedding), query, cap=config.final_logit_softcapping)
        assert found.sample is not None
        assert found.soft is not None
        ids = found.argmax.float(), found.sample.float()
        return found.logsumexp, found.entropy, *ids, found.soft

    return x, head


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


def _fingerprint(device: torch.device, dtype: torch.dtype, config: ModelConfig) -> str:
    """Of all that a verdict depends on."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.iterdir()):
        if path.suffix in (".py", ".toml"):
            digest.update(path.read_bytes())
    card = torch.cuda.get_device_properties(device) if device.type == "cuda" else "none"
    driver = torch._C._cuda_getDriverVersion() if device.type == "cuda" else 0  # type: ignore[attr-defined]
    digest.update(f"{card} {driver} {torch.__version__} {triton.__version__} {dtype} {config}".encode())
    return digest.hexdigest()[:32]

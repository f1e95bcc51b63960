"""What every operation is tried on before it serves on a card (selfcheck.py): seeded inputs with the model's own sizes,
few tokens, experts, keys and ids. Numbers are drawn on the host: after a capture that failed, torch may refuse to draw
on the card, and one operation's fault would be every later one's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scumble.config import LayerConfig, ModelConfig
from scumble.ops.classes import Classified, TokenClasses
from scumble.ops.pages import PAGE, Pages
from scumble.ops.query import VocabQuery
from scumble.ops.reference import ReferenceOps
from scumble.ops.triton import linear, norms
from scumble.ops.triton.layouts import FP4_GROUP, Int4, Layout
from scumble.ops.triton.ops import CLASSES, TritonOps
from scumble.ops.triton.packed import PackedExperts, Rounded, left_by_norms
from scumble.ops.triton.repacking import from_nibbles
from scumble.ops.triton.rounding import nvfp4_rows, rounded

TOKENS, ALONE, KEYS, IDS, EXPERTS = 40, 4, 300, 4096, 4

Cast = Callable[[Tensor], Tensor]
# What an operation makes of tokens [n, …]: results with one row a token. Weights go through the cast.
Case = Callable[[ReferenceOps, Tensor, Cast], tuple[Tensor, ...]]


class Matrix:
    """A weight as layers hand it to operations."""

    def __init__(self, numbers: Tensor):
        self.numbers = numbers

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.numbers)

    def laid_out(self) -> Tensor:
        return self.numbers


def of_operation(
    name: str, device: torch.device, dtype: torch.dtype, config: ModelConfig
) -> Iterator[tuple[Tensor, Case]]:
    """Tokens and what to do with them, for one operation: once, or once for each kind of layer."""
    size, eps = config.hidden_size, config.rms_norm_eps

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape).to(device, dtype)

    def tokens(width: int) -> Tensor:
        return numbers(TOKENS, width)

    match name:
        case "rms_norm":
            weight = numbers(size)
            yield tokens(size), lambda ops, x, cast: (ops.rms_norm(x, cast(weight), eps), ops.rms_norm(x, None, eps))
        case "geglu":
            yield tokens(config.intermediate_size), lambda ops, x, cast: (ops.geglu(x, x.flip(-1)),)
        case "gated":
            pair = [numbers(config.intermediate_size, size) / size**0.5 for _ in range(2)]
            yield (
                tokens(size),
                lambda ops, x, cast: (ops.gated(x, Matrix(cast(pair[0])), Matrix(cast(pair[1]))),),
            )
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
        case "noise":
            known = Known.of(TOKENS, device)

            def drawn(ops: ReferenceOps, x: Tensor, cast: Cast) -> tuple[Tensor, ...]:
                return ops.noise(Known(known.words[: len(x)]), x.long(), len(Known.IDS), 262_144)

            yield torch.full((TOKENS,), 2, device=device), drawn
        case _ if name == CLASSES:
            yield _classified(device, dtype, config)
        case _:
            yield from _heads(name, device, dtype, config)


def of_format(
    device: torch.device, dtype: torch.dtype, config: ModelConfig, form: str
) -> Iterator[tuple[Tensor, Case]]:
    """Products with matrices that were rounded to a format."""
    size, inner, width = config.hidden_size, config.intermediate_size, config.moe_intermediate_size
    count = min(EXPERTS, config.num_experts)
    k = min(2, count)

    def matrix(*shape: int) -> Tensor:
        return torch.randn(*shape).to(device, dtype) / shape[-1] ** 0.5

    ups, downs = _specimens(matrix(count, 2 * width, size), form), _specimens(matrix(count, size, width), form)
    for up, down in zip(ups, downs, strict=True):

        def mixed(ops: ReferenceOps, x: Tensor, cast: Cast, up: Layout = up, down: Layout = down) -> tuple[Tensor, ...]:
            chosen, weights = _routes(x, k, count)
            if isinstance(ops, TritonOps):
                return (PackedExperts(up, down, Rounded())(x, weights, chosen),)
            return (ops.experts(x, weights, chosen, up.dequantized().float(), down.dequantized().float()),)

        yield torch.randn(TOKENS, size).to(device, dtype), mixed
    if form == "nvfp4":  # of experts alone
        return
    for outputs, inputs in ((size, inner), (inner, size)):
        pairs = zip(*(_specimens(matrix(outputs, inputs), form) for _ in range(2)), strict=True)
        for pair in pairs:

            def products(
                ops: ReferenceOps, x: Tensor, cast: Cast, pair: tuple[Layout, Layout] = pair
            ) -> tuple[Tensor, ...]:
                """Of normed tokens: one by itself, and two as an MLP's first half."""
                if isinstance(ops, TritonOps):
                    normed, given = norms.norm_for(x, None, config.rms_norm_eps, left_by_norms(form))
                    given = Rounded()(normed, pair[0].format) if given.values is normed else given
                    return linear.linear(given, pair[0]), linear.gated_linear(given, *pair)
                normed, numbers = (
                    ops.rms_norm(x, None, config.rms_norm_eps),
                    [one.dequantized().float() for one in pair],
                )
                return ops.linear(normed, numbers[0]), ops.gated(normed, Matrix(numbers[0]), Matrix(numbers[1]))

            yield torch.randn(TOKENS, inputs).to(device, dtype), products


def _specimens(weight: Tensor, form: str) -> list[Layout]:
    """A weight in every way in which a format stores numbers."""
    plain = rounded(weight, form)
    if form != "int4":
        return [plain]
    assert isinstance(plain, Int4)
    zero = torch.randint(5, 11, plain.scale.shape).float().to(weight.device)
    packed, scale, factor = nvfp4_rows(F.pad(weight.float(), (0, -weight.shape[-1] % FP4_GROUP)))
    e2m1 = from_nibbles(packed, scale, weight.shape[-1], FP4_GROUP, factor=factor, e2m1=True)
    return [plain, replace(plain, scale=plain.scale.float(), zero=zero), e2m1]


@dataclass(frozen=True)
class Known:
    """Noise of n equal canvases whose numbers are known, as `Address` in ops/api.py: seed 2⁶³ + 5, candidate 1, canvas
    3, and in pass 2 the first ids of 262,144 and their uniforms."""

    words: Tensor
    UNIFORMS = (0.08343502551418469, 0.31971834012276923, 0.8238159089239023, 0.2875837065669994)
    IDS = (172_923, 28_187, 88_388, 193_494)

    @classmethod
    def of(cls, n: int, device: torch.device) -> Known:
        return cls(torch.tensor([5, 2**31, 1, 3], device=device).repeat(n, 1))

    def draw(self, pass_index: Tensor, length: int, vocab: int) -> tuple[Tensor, Tensor]:
        n, device = len(pass_index), pass_index.device
        uniforms = torch.tensor(self.UNIFORMS, dtype=torch.float64, device=device)
        return uniforms.repeat(n, 1), torch.tensor(self.IDS, device=device).repeat(n, 1)


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
            return torch.randn(*shape).to(device, dtype)

        q, weight = numbers(TOKENS, heads, dim), numbers(dim)
        if name == "norm_rope":

            def rope(ops: ReferenceOps, x: Tensor, cast: Cast, weight: Tensor = weight) -> tuple[Tensor, ...]:
                table = torch.linspace(-1, 1, weight.shape[0], device=device).to(dtype).expand(x.shape[0], 1, -1)
                return (ops.norm_rope(x, cast(weight), cast(table), cast(table), config.rms_norm_eps),)

            yield q, rope
            continue
        if name == "heads":
            yield _projected(numbers, config, layer)
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


def _projected(numbers: Callable[..., Tensor], config: ModelConfig, layer: LayerConfig) -> tuple[Tensor, Case]:
    """Queries, keys and values of tokens; a layer that is not sliding has no values of its own."""
    size, dim = config.hidden_size, layer.head_dim
    widths = config.num_attention_heads, layer.num_key_value_heads, layer.num_key_value_heads
    matrices = [numbers(width * dim, size) / size**0.5 for width in widths]
    norms = numbers(dim), numbers(dim)

    def made(ops: ReferenceOps, x: Tensor, cast: Cast) -> tuple[Tensor, ...]:
        of_queries, of_keys, of_values = (Matrix(cast(matrix)) for matrix in matrices)
        table = cast(torch.linspace(-1, 1, dim, device=x.device).to(norms[0].dtype)).expand(x.shape[0], 1, -1)
        projections = of_queries, of_keys, of_values if layer.is_sliding else None
        return ops.heads(x, projections, (cast(norms[0]), cast(norms[1])), (table, table), config.rms_norm_eps)

    return numbers(TOKENS, size), made


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
    embedding = torch.randint(-1, 2, (ids, size)).to(device, dtype)
    x = torch.randint(-1, 2, (TOKENS, size)).to(device, dtype)

    def head(ops: ReferenceOps, x: Tensor, cast: Cast) -> tuple[Tensor, ...]:
        uniforms = torch.arange(x.shape[0], 0, -1, device=device).double() / (TOKENS + 1)
        query = VocabQuery(uniforms=uniforms, want_soft=True)
        found = ops.vocab_head(x, cast(embedding), query, cap=config.final_logit_softcapping)
        assert found.sample is not None
        assert found.soft is not None
        ids = found.argmax.float(), found.sample.float()
        return found.logsumexp, found.entropy, *ids, found.soft

    return x, head


def _classified(device: torch.device, dtype: torch.dtype, config: ModelConfig) -> tuple[Tensor, Case]:
    """Classes of one id, of many, and of none; draws of all of them."""
    ids, size, count = min(IDS, config.vocab_size), config.hidden_size, 7
    embedding = torch.randint(-1, 2, (ids, size)).to(device, dtype)
    x = torch.randint(-1, 2, (TOKENS, size)).to(device, dtype)
    of_token = np.arange(ids) % 5
    of_token[0] = 5
    classes = TokenClasses(of_token, count)

    def head(ops: ReferenceOps, x: Tensor, cast: Cast) -> tuple[Tensor, ...]:
        n = x.shape[0]
        query = VocabQuery(1.0, classes=[Classified(classes, 0, n)])
        (found,) = ops.vocab_head(x, cast(embedding), query, cap=config.final_logit_softcapping).classes
        rows, chosen = np.arange(n), np.arange(n, 0, -1) % 6
        uniforms = np.arange(n, 0, -1) / (TOKENS + 1)
        drawn = found.draw(rows, chosen, uniforms), found.best_ids(rows, chosen)
        parts = found.mass[:, 1:6], found.entropy[:, 1:6], *(one[:, None].astype(np.float64) for one in drawn)
        return tuple(torch.from_numpy(np.ascontiguousarray(part)) for part in parts)

    return x, head

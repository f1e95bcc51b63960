"""The operations of a forward, by these kernels: what layers call (ops/api.py).

What has no kernel here, or whose kernel failed its check on this card, is the reference's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from scumble.errors import InvalidRequest
from scumble.ops.api import Address, Product
from scumble.ops.pages import PAGE, Destination, Pages
from scumble.ops.query import VocabQuery
from scumble.ops.reference import REFERENCE, ReferenceOps
from scumble.ops.result import VocabResult
from scumble.ops.triton import attention, experts, geglu, grouping, linear, noise, norms, rotate, router, vocab
from scumble.ops.triton.activations import for_format
from scumble.ops.triton.launch import architecture, tile_table
from scumble.ops.triton.layouts import Layout, Plain
from scumble.ops.triton.packed import Packed, PackedExperts, Rounded, laid_out
from scumble.ops.triton.rounding import rounded

CLASSES = "vocab_head, classes"  # of ids: what structures need of it

# What may be replaced by the reference, one by one: the methods below, and of one of them the kernels for classes.
OPERATIONS = (
    "rms_norm", "norm_rope", "geglu", "gated", "heads", "attention_tail", "layer_tail", "attend_all", "attend_causal",
    "attend_pages", "linear", "router", "experts", "vocab_head", CLASSES, "noise",
)  # fmt: skip


FORMATS = ("fp8", "int8", "int4", "nvfp4")


@runtime_checkable
class LaidOut(Protocol):
    """A weight that says what its products read (formats/weight.py)."""

    def laid_out(self) -> Any: ...


class TritonOps(ReferenceOps):
    """refused: operations that the reference serves instead. device: of the card; the CPU: Triton's interpreter.

    faults: says why a format's products failed their check on this card, or None; asked before its first weight.
    """

    name = "triton"
    batch_invariant = True

    def __init__(
        self, refused: Collection[str] = (), device: torch.device | str = "cpu",
        faults: Callable[[str], str | None] | None = None,
    ):  # fmt: skip
        self.refused, self.faults = frozenset(refused), faults
        for name in self.refused - {CLASSES}:
            setattr(self, name, getattr(REFERENCE, name))
        self.tiles = frozenset(tile_table()[architecture(torch.device(device))])
        self.formats = frozenset(form for form in FORMATS if f"up {form}" in self.tiles)
        self._proved: set[str] = set()
        self._rounded = Rounded()
        # The reference's products are a library's, which may round a row differently for every number of rows.
        self.batch_invariant = not self.refused - {"attend_pages", "noise"}
        self.attends_pages = not self.refused

    def rms_norm(self, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        return norms.norm(x.contiguous(), weight, eps)

    def norm_for_products(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if "rms_norm" in self.refused:
            return super().norm_for_products(x, weight, eps)
        out, made = norms.norm_for(x.contiguous(), weight, eps, form := self._rounded.products)
        self._rounded.keep(out, form, made)
        return out

    def norm_rope(self, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        return rotate.norm_rope(x.contiguous(), weight, cos.contiguous(), sin.contiguous(), eps)

    def geglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return geglu.geglu(gate.contiguous(), up.contiguous())

    def gated(self, x: Tensor, gate: Product, up: Product) -> Tensor:
        pair = together(gate, up)
        if pair is None:
            return super().gated(x, gate, up)
        return linear.gated_linear(self._rounded(x, pair[0].format), pair[0], pair[1])

    def heads(
        self, x: Tensor, projections: tuple[Product, Product, Product | None], norms: tuple[Tensor, Tensor],
        rope: tuple[Tensor, Tensor], eps: float, to: Destination | None = None, heard: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        weights = together(*(one for one in projections if one is not None))
        if weights is None:
            return super().heads(x, projections, norms, rope, eps, to, heard)
        product = linear.linear(self._rounded(x, weights[0].format), *weights)
        groups, tables = weights[1].outputs // norms[1].shape[0], (rope[0].contiguous(), rope[1].contiguous())
        queries, keys, values = rotate.heads(product, norms, tables, groups, projections[2] is None, eps, to)
        return queries if heard is None else queries[heard], keys, values

    def attention_tail(
        self, x: Tensor, y: Tensor, weight: Tensor, first: Tensor, second: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        formats = self._rounded.products, self._rounded.experts
        weights = weight, first, second
        out, made = norms.attention_tail_for(x.contiguous(), y.contiguous(), weights, eps, formats)
        for one, form, activations in zip(out[1:], formats, made, strict=True):
            self._rounded.keep(one, form, activations)
        return out

    def layer_tail(
        self, h: Tensor, branches: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor, Tensor], denoise: Tensor,
        scalars: tuple[Tensor, Tensor], eps: float,
    ) -> Tensor:  # fmt: skip
        dense, mixed = branches
        both = dense.contiguous(), mixed.contiguous()
        return norms.layer_tail(h.contiguous(), both, weights, denoise.contiguous(), scalars, eps)

    def attend_all(self, queries: Tensor, keys: Tensor, values: Tensor, first: int = 0) -> Tensor:
        low = torch.full((queries.shape[0],), first, dtype=torch.int32, device=queries.device)
        return _attend(queries, keys, values, low, torch.full_like(low, first + keys.shape[1]), first)

    def attend_causal(
        self, queries: Tensor, keys: Tensor, values: Tensor, window: int | None, first: int = 0
    ) -> Tensor:
        end = first + keys.shape[1]
        high = torch.arange(end - queries.shape[0] + 1, end + 1, dtype=torch.int32, device=queries.device)
        low = torch.full_like(high, first) if window is None else (high - window).clamp_min(first)
        return _attend(queries, keys, values, low, high, first)

    def attend_pages(self, queries: Tensor, keys: Tensor, values: Tensor, pages: Pages) -> Tensor:
        dim, share, step = queries.shape[2], queries.shape[1] // keys.shape[1], pages.tokens == 1
        name = attention.name_of(dim, step)
        asking = pages.kept.get(f"{name} {share}")
        if asking is None:
            asking = attention.several_rows(pages.low, pages.high, pages.tokens, share, name)
            pages.kept[f"{name} {share}"] = asking
        return attention.attend(queries, keys, values, asking, pages.longest, pages.tables, PAGE, step=step)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return linear.linear(for_format(x.contiguous(), "plain"), Plain(weight.contiguous()))

    def pack(self, weight: Tensor, form: str | None = None) -> Packed:
        if form is None:
            return Packed(Plain(weight.contiguous()), self._rounded)
        self._prove(form)
        return Packed(rounded(weight, form if f"linear {form}" in self.tiles else "fp8"), self._rounded)

    def pack_experts(self, gate_up: Tensor, down: Tensor, form: str | None = None) -> PackedExperts:
        if form is None:
            return PackedExperts(Plain(gate_up.contiguous()), Plain(down.contiguous()), self._rounded)
        self._prove(form)
        return PackedExperts(rounded(gate_up, form), rounded(down, form), self._rounded)

    def pack_stored(self, form: str, state: Mapping[str, Tensor]) -> Packed:
        self._prove(form)
        return Packed(laid_out(form, state, native=False), self._rounded)

    def pack_stored_experts(
        self, form: str, gate_up: Mapping[str, Tensor], down: Mapping[str, Tensor]
    ) -> PackedExperts:
        self._prove(form)
        native = "nvfp4" in self.formats
        return PackedExperts(laid_out(form, gate_up, native), laid_out(form, down, native), self._rounded)

    def _prove(self, form: str) -> None:
        """A format's kernels before its first weight. Raises InvalidRequest where they fail."""
        if form in self._proved:
            return
        why = None if self.faults is None else self.faults(form)
        if why is not None:
            raise InvalidRequest(f"dtype {form} cannot be used on this card: {why}; load in bfloat16")
        self._proved.add(form)

    def router(
        self, h: Tensor, scale: Tensor, proj: Tensor, per_expert: Tensor, k: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        return *router.router(h.contiguous(), scale, proj, per_expert, k, eps), None

    def experts(self, x: Tensor, weights: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        groups = grouping.group(chosen, gate_up.shape[0], "plain")
        return experts.experts(for_format(x.contiguous(), "plain"), weights, groups, Plain(gate_up), Plain(down))

    def vocab_head(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, hidden: Tensor, embedding: Tensor, query: VocabQuery, *, cap: float, head: Any = None
    ) -> VocabResult:
        if head is not None or (query.classes and CLASSES in self.refused):
            return REFERENCE.vocab_head(hidden, embedding, query, cap=cap, head=head)
        return vocab.vocab_head(hidden.contiguous(), embedding, query, cap=cap)

    def noise(self, address: Address, pass_index: Tensor, length: int, vocab: int) -> tuple[Tensor, Tensor]:
        return noise.noise(address.words.contiguous(), pass_index.contiguous(), length, vocab)


def together(*products: Product) -> list[Layout] | None:
    """The matrices of weights that one launch may serve; None: each by itself."""
    found = [product.laid_out() if isinstance(product, LaidOut) else None for product in products]
    matrices = [
        one.matrix if isinstance(one, Packed) else Plain(one.contiguous()) if isinstance(one, Tensor) else None
        for one in found
    ]
    known = [one for one in matrices if one is not None]
    return known if len(known) == len(products) and linear.alike(known) else None


def _attend(queries: Tensor, keys: Tensor, values: Tensor, low: Tensor, high: Tensor, first: int) -> Tensor:
    """queries [n, H, K]; keys and values [G, S, K], as one row's cache has them, from position `first` on."""
    n, heads, dim = queries.shape
    groups, seen, _ = keys.shape
    k, v = keys.transpose(0, 1), values.transpose(0, 1)
    if k.stride() != v.stride() or k.stride(2) != 1:
        k, v = k.contiguous(), v.contiguous()
    step = n == 1
    asking = attention.one_row(low, high, heads // groups, attention.name_of(dim, step))
    return attention.attend(queries.contiguous(), k, v, asking, seen, step=step, base=first)

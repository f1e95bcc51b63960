"""Every operation in plain torch, on any device and in any dtype: documentation, fallback and oracle; differentiable.

A matrix library may round a row differently for every number of rows, so results are not batch-invariant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scumble.config import ModelConfig
from scumble.ops.api import Address, Product, StepRow
from scumble.ops.pages import Destination, Pages
from scumble.ops.tiled import vocab_head
from scumble.structure.law import solve


class ReferenceOps:
    """The methods of `Ops` (ops/api.py says what each computes), as formulas."""

    name = "reference"
    variant = ""
    batch_invariant = False
    packs = False
    formats: frozenset[str] = frozenset()
    attends_pages = False
    few_tokens = 0

    def rms_norm(self, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        h = x.float()
        h = h * (h.square().mean(-1, keepdim=True) + eps).pow(-0.5)
        if weight is not None:
            h = h * weight.float()
        return h.to(x.dtype)

    def norm_for_products(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self.rms_norm(x, weight, eps)

    def norm_rope(self, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        return apply_rope(self.rms_norm(x, weight, eps), cos, sin)

    def geglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.gelu(gate, approximate="tanh") * up

    def gated(self, x: Tensor, gate: Product, up: Product) -> Tensor:
        return self.geglu(gate(x), up(x))

    def heads(
        self,
        x: Tensor,
        projections: tuple[Product, Product, Product | None],
        norms: tuple[Tensor, Tensor],
        rope: tuple[Tensor, Tensor],
        eps: float,
        to: Destination | None = None,
        heard: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        def split(product: Product) -> Tensor:
            return product(x).unflatten(-1, (-1, norms[0].shape[0]))

        of_queries, of_keys, of_values = projections
        raw_keys = split(of_keys)
        keys = self.norm_rope(raw_keys, norms[1], *rope, eps)
        values = self.rms_norm(raw_keys if of_values is None else split(of_values), None, eps)
        if heard is not None:
            x, rope = x[heard], (rope[0][heard], rope[1][heard])
        queries = self.norm_rope(split(of_queries), norms[0], *rope, eps) if x.shape[0] else keys[:0]
        if to is not None:
            keys, values = to.take(keys, values)
        return queries, keys, values

    def add_norm(self, x: Tensor, y: Tensor, weight: Tensor, eps: float, scale: Tensor | None = None) -> Tensor:
        """(x + norm(y)·weight) · scale, scale [N, 1] or None: what both tails are made of."""
        h = x + self.rms_norm(y, weight, eps)
        return h if scale is None else h * scale

    def attention_tail(
        self, x: Tensor, y: Tensor, weight: Tensor, first: Tensor, second: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        h = self.add_norm(x, y, weight, eps)
        return h, self.norm_for_products(h, first, eps), self.norm_for_products(h, second, eps)

    def layer_tail(
        self,
        h: Tensor,
        branches: tuple[Tensor, Tensor],
        weights: tuple[Tensor, Tensor, Tensor],
        denoise: Tensor,
        scalars: tuple[Tensor, Tensor],
        eps: float,
    ) -> Tensor:
        both = self.rms_norm(branches[0], weights[0], eps) + self.rms_norm(branches[1], weights[1], eps)
        return self.add_norm(h, both, weights[2], eps, torch.where(denoise, *scalars))

    def attend_all(self, queries: Tensor, keys: Tensor, values: Tensor, first: int = 0) -> Tensor:
        return attend_grouped(queries, keys, values, mask=None)

    def attend_causal(
        self, queries: Tensor, keys: Tensor, values: Tensor, window: int | None, first: int = 0
    ) -> Tensor:
        mask = causal_mask(queries.shape[0], keys.shape[1], window, queries.device)
        return attend_grouped(queries, keys, values, mask=mask)

    def attend_pages(self, queries: Tensor, keys: Tensor, values: Tensor, pages: Pages) -> Tensor:
        raise NotImplementedError("every row has a cache of its own")

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def pack(self, weight: Tensor, form: str | None = None) -> Any:
        raise NotImplementedError("weights are read as they lie")

    def layer_step(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        rows: Sequence[StepRow],
        vectors: Sequence[Tensor],
        matrices: Sequence[int | None],
        sizes: Sequence[int],
        eps: float,
    ) -> Tensor:
        raise NotImplementedError("layers run module by module")

    def pack_experts(self, gate_up: Tensor, down: Tensor, form: str | None = None) -> Any:
        raise NotImplementedError("weights are read as they lie")

    def pack_stored(self, form: str, state: Mapping[str, Tensor]) -> Any:
        raise NotImplementedError("weights are read as they lie")

    def pack_stored_experts(self, form: str, gate_up: Mapping[str, Tensor], down: Mapping[str, Tensor]) -> Any:
        raise NotImplementedError("weights are read as they lie")

    def router(
        self, h: Tensor, scale: Tensor, proj: Tensor, per_expert: Tensor, k: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        factor = scale.float() * h.shape[-1] ** -0.5
        with torch.autocast(h.device.type, enabled=False):  # statistics stay in float32 in mixed-precision training too
            probabilities = torch.softmax(self.router_norm(h, factor, eps) @ proj.float().T, dim=-1)
        weights, chosen = torch.topk(probabilities, k, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        return weights * per_expert.float()[chosen], chosen, probabilities

    def router_norm(self, h: Tensor, factor: Tensor, eps: float) -> Tensor:
        """norm(h) · factor in float32."""
        return self.rms_norm(h.float(), None, eps) * factor

    def experts(self, x: Tensor, weights: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        # unbind, not indexing: its gradient is one stack, not a zero-filled copy an expert
        ups, downs = gate_up.unbind(), down.unbind()
        return self.grouped(x, weights, chosen, len(ups), lambda expert: (ups[expert], downs[expert]))

    def grouped(
        self, x: Tensor, weights: Tensor, chosen: Tensor, count: int, matrices: Callable[[int], tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Sort tokens by expert, one product a group, add back. matrices: gate_up [2F, D] and down [D, F] of an expert
        that some token chose."""
        k = chosen.shape[1]
        order = chosen.flatten().argsort(stable=True)  # [N·k]: slots grouped by expert
        counts = torch.bincount(chosen.flatten(), minlength=count).tolist()
        token = order // k
        outputs = []
        for expert, rows in enumerate(x[token].split(counts)):
            if rows.shape[0]:
                up, down = matrices(expert)
                gate, linear = (rows @ up.T).chunk(2, dim=-1)
                outputs.append(F.gelu(gate, approximate="tanh") * linear @ down.T)
        weighted = torch.cat(outputs).float() * weights.flatten()[order, None]
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        return out.index_add(0, token, weighted).to(x.dtype)

    def noise(self, address: Address, pass_index: Tensor, length: int, vocab: int) -> tuple[Tensor, Tensor]:
        return address.draw(pass_index, length, vocab)

    vocab_head = staticmethod(vocab_head)
    canvas_law = staticmethod(solve)


REFERENCE = ReferenceOps()


def unfit(device: torch.device, dtype: torch.dtype, config: ModelConfig | None) -> str | None:
    """As a backend of ops/choose.py: it serves everywhere."""
    return None


def make(device: torch.device, dtype: torch.dtype, config: ModelConfig | None) -> ReferenceOps:
    return REFERENCE


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [N, H, K] by its positions ("rotate half": dimension i pairs with i + K/2)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def causal_mask(n: int, seen: int, window: int | None, device: torch.device) -> Tensor | None:
    """True where query i of the last n of `seen` tokens may look [n, seen]; None where it may look everywhere."""
    if n == 1 and (window is None or seen <= window):
        return None
    query = torch.arange(seen - n, seen, device=device)[:, None]
    key = torch.arange(seen, device=device)
    mask = key <= query
    return mask if window is None else mask & (key > query - window)


def attend_grouped(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Grouped-query attention: queries [n, H, K] over keys and values [G, S, K] -> [n, H, K].

    The H/G query heads that share a key head become extra query rows of it, so keys are never repeated in memory.
    """
    n, heads, dim = queries.shape
    groups = keys.shape[0]
    share = heads // groups
    folded = queries.view(n, groups, share, dim).permute(1, 2, 0, 3).reshape(groups, share * n, dim)
    if mask is not None:
        mask = mask.repeat(share, 1)
    mixed = F.scaled_dot_product_attention(folded[None], keys[None], values[None], attn_mask=mask, scale=1.0)[0]
    return mixed.view(groups, share, n, dim).permute(2, 0, 1, 3).reshape(n, heads, dim)

"""What layers are written in: the operations of a forward, as one object that is chosen once, at load (ops/choose.py).

A backend is a folder here with a class of these methods. It may inherit `ReferenceOps` and override what it has kernels
for. Layers hold the object and call it; they never ask what it can do. Training uses an ops of its own
(ops/training.py), so nothing of training is asked about during inference.

Shapes: N tokens of all segments, D hidden, H query heads, G key-value heads, K head_dim, S keys, E experts, k experts a
token, F expert width, V vocabulary. Statistics are float32 everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from scumble.ops.pages import Destination, Pages
from scumble.ops.query import VocabQuery
from scumble.ops.result import VocabResult
from scumble.structure.graph import Window
from scumble.structure.law import Masses, Solution

Product = Callable[[Tensor], Tensor]
"""A weight (formats/weight.py) as operations see it: x [N, in] -> [N, out]."""


class StepRow(NamedTuple):
    """n encoded tokens of one row, and its cache in a layer: keys and values [G, capacity, K], with room for n more.

    Slots start … end - 1 are live; first: the position of the first of them. window: how many tokens a token may see.
    """

    keys: Tensor
    values: Tensor
    n: int
    start: int
    end: int
    window: int
    first: int


class Address(Protocol):
    """Where the random numbers of S canvases come from (diffusion/noise.py). words [S, 4] int64: low and high word of
    the seed, candidate, canvas."""

    @property
    def words(self) -> Tensor: ...

    def draw(self, pass_index: Tensor, length: int, vocab: int) -> tuple[Tensor, Tensor]:
        """The numbers themselves, in torch."""
        ...


class Ops(Protocol):
    """name: of the backend.
    variant: which of its builds serves, where it has several (the CPU's instruction set); else empty.
    batch_invariant: a token's result is the same, bit for bit, whichever tokens stand beside it in a call; where it is
        False, only forwards of the same rows give the same bits.
    packs: float weights are laid out anew for it (`pack`).
    formats: number formats whose weights it lays out by itself (`pack` with a format, `pack_stored`).
    attends_pages: it has `attend_pages`, and nothing of it waits for the device: so a pass may be captured and replayed
        (engine/replay.py).
    few_tokens: up to so many encoded tokens it runs a whole layer in one call (`layer_step`); 0: never.
    """

    name: str
    variant: str
    batch_invariant: bool
    packs: bool
    formats: frozenset[str]
    attends_pages: bool
    few_tokens: int

    # --- norms and what surrounds them ----------------------------------------------------------------------------

    def rms_norm(self, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        """x · (mean(x²) + eps)^-½ · weight over the last axis, in x's dtype."""
        ...

    def norm_for_products(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """rms_norm in the dtype in which products take it (mixed-precision training: bfloat16 from float32)."""
        ...

    def norm_rope(self, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        """RMSNorm of every head of x [N, H, K], then rotary positions; cos and sin [N, 1, K]."""
        ...

    def geglu(self, gate: Tensor, up: Tensor) -> Tensor:
        """gelu_tanh(gate) · up"""
        ...

    def gated(self, x: Tensor, gate: Product, up: Product) -> Tensor:
        """gelu_tanh(gate(x)) · up(x); x [N, in]. gate and up: weights, called for their products."""
        ...

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
        """What attention is made of: queries [N, H, K], keys and values [N, G, K] of x [N, D].

        projections: of queries, keys, values (None: the raw keys are the values too). Queries and keys have `norm_rope`
        with their own weight [K], values a norm without. to: keys and values go there, and its pools are returned.
        heard [M] int64: only these tokens have queries.
        """
        ...

    def attention_tail(
        self, x: Tensor, y: Tensor, weight: Tensor, first: Tensor, second: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """h = x + norm(y)·weight [N, D]; norm(h)·first and norm(h)·second, for products."""
        ...

    def layer_tail(
        self,
        h: Tensor,
        branches: tuple[Tensor, Tensor],
        weights: tuple[Tensor, Tensor, Tensor],
        denoise: Tensor,
        scalars: tuple[Tensor, Tensor],
        eps: float,
    ) -> Tensor:
        """(h + norm(norm(dense)·w₁ + norm(mixed)·w₂)·w₃) · scalar; branches: dense and mixed [N, D].

        scalars: of denoised and of encoded tokens, [1] each; denoise [N, 1] bool says which.
        """
        ...

    # --- attention ------------------------------------------------------------------------------------------------

    def attend_all(self, queries: Tensor, keys: Tensor, values: Tensor, first: int = 0) -> Tensor:
        """queries [n, H, K] see all keys and values [G, S, K] -> [n, H, K]. Scores are not scaled.

        first: the position of the first key in its text. Sums may run over groups of positions, so that a result does
        not depend on where a cache begins.
        """
        ...

    def attend_causal(
        self, queries: Tensor, keys: Tensor, values: Tensor, window: int | None, first: int = 0
    ) -> Tensor:
        """queries [n, H, K] of the last n of S tokens; each sees itself and the window - 1 tokens before it, or all."""
        ...

    def attend_pages(self, queries: Tensor, keys: Tensor, values: Tensor, pages: Pages) -> Tensor:
        """queries [T, H, K] of several rows, keys and values [slots, G, K] of a pool -> [T, H, K]; the bits of
        `attend_all` and `attend_causal` row by row."""
        ...

    # --- products -------------------------------------------------------------------------------------------------

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """x [N, in] · weight [out, in]ᵀ -> [N, out]"""
        ...

    def pack(self, weight: Tensor, form: str | None = None) -> Any:
        """Where `packs`: a weight [out, in] laid out for products. Called with x it gives the product; `plain()` gives
        the weight back, `nbytes` its size, `base` its addresses. form, one of `formats`: rounded to it first."""
        ...

    def pack_experts(self, gate_up: Tensor, down: Tensor, form: str | None = None) -> Any:
        """The same of all experts' matrices; called with x, weights and chosen as `experts` is."""
        ...

    def pack_stored(self, form: str, state: Mapping[str, Tensor]) -> Any:
        """A weight of one of `formats`, with the numbers that the `state()` of such a weight (formats/) holds on the
        device. Raises ValueError for groups of numbers that no kernel takes."""
        ...

    def pack_stored_experts(self, form: str, gate_up: Mapping[str, Tensor], down: Mapping[str, Tensor]) -> Any:
        """The same of all experts' matrices, [E, rows, …] each."""
        ...

    def router(
        self, h: Tensor, scale: Tensor, proj: Tensor, per_expert: Tensor, k: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """h [N, D], scale [D], proj [E, D], per_expert [E] -> weights [N, k] float32, expert ids [N, k] int64.

        Softmax over all experts, the k best, renormalised to sum 1, times per_expert; h is normed without weight first.
        Third: all probabilities [N, E] float32, where gradients may want them, else None.
        """
        ...

    def experts(self, x: Tensor, weights: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        """x [N, D], weights and chosen [N, k], gate_up [E, 2F, D] (gate first), down [E, D, F] -> [N, D]: the weighted
        sum of the chosen experts' gated MLPs."""
        ...

    def grouped(
        self, x: Tensor, weights: Tensor, chosen: Tensor, count: int, matrices: Callable[[int], tuple[Tensor, Tensor]]
    ) -> Tensor:
        """`experts` of `count` experts whose matrices are made when they are needed: by expert, gate_up and down."""
        ...

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
        """A whole layer on x [N, D], N ≤ few_tokens, encoded: the tokens of `rows`, which have caches of their own.

        The caches' keys and values take them up. vectors, matrices and sizes in the order of the native structures
        (model/step.py gathers them).
        """
        ...

    def vocab_head(
        self,
        hidden: Tensor,
        embedding: Tensor,
        query: VocabQuery,
        *,
        cap: float,
        head: Any = None,
    ) -> VocabResult:
        """What the query asks of softmax(softcap(hidden · embeddingᵀ) / temperature); hidden [n, D], embedding [V, D]
        in one dtype; the query has been checked. head: the embedding in int8, which then serves in its place.
        """
        ...

    # --- noise ----------------------------------------------------------------------------------------------------

    def noise(self, address: Address, pass_index: Tensor, length: int, vocab: int) -> tuple[Tensor, Tensor]:
        """`address.draw`: of S canvases in pass pass_index [S] uniforms [S, length] float64 and ids to renoise
        [S, length]. The very same numbers, whatever makes them."""
        ...

    # --- structure ------------------------------------------------------------------------------------------------

    def canvas_law(self, window: Window, masses: Masses, uniforms: np.ndarray | None) -> Solution:
        """The law of a canvas under a structure, on the host (structure/law.py: solve)."""
        ...

"""Weights in a card's layouts, as formats/ holds them: called with tokens, they give products."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scumble.ops.triton import experts, grouping, linear
from scumble.ops.triton.activations import BY_ROW, Activations, for_format
from scumble.ops.triton.layouts import Fp8, Int8, Layout
from scumble.ops.triton.repacking import from_nibbles, nvfp4_from

State = Mapping[str, Tensor]


class Rounded:
    """Activations as a format wants them. The last ones are kept: several products may take the same, and norms leave
    theirs here for the products behind them.

    products, experts: the formats that norms leave, of those that have one scale a token; else "plain".
    """

    def __init__(self) -> None:
        self.products = self.experts = "plain"
        self.last: deque[tuple[Tensor, int, str, Activations]] = deque(maxlen=2)

    def __call__(self, x: Tensor, format: str) -> Activations:
        for before, version, kind, made in self.last:
            if before is x and version == version_of(x) and kind == format:
                return made
        made = for_format(x.contiguous(), format)
        self.keep(x, format, made)
        return made

    def keep(self, x: Tensor, format: str, made: Activations) -> None:
        """That x is this in that format."""
        self.last.append((x, version_of(x), format, made))


def version_of(x: Tensor) -> int:
    """How often x was changed in place; torch does not count in its inference mode, nor do forwards do it."""
    return 0 if x.is_inference() else x._version


def left_by_norms(format: str) -> str:
    return format if format in BY_ROW else "plain"


@dataclass(frozen=True)
class Packed:
    """One matrix [N, K]."""

    matrix: Layout
    rounded: Rounded

    def __post_init__(self) -> None:
        self.rounded.products = left_by_norms(self.matrix.format)

    def __call__(self, x: Tensor) -> Tensor:
        """x [M, K] -> [M, N]."""
        return linear.linear(self.rounded(x, self.matrix.format), self.matrix)

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self.matrix.tensors

    def plain(self) -> Tensor:
        """The numbers that products see [N, K], in bfloat16."""
        return self.matrix.dequantized().bfloat16()


@dataclass(frozen=True)
class PackedExperts:
    """gate_up [E, 2F, D] (gate first) and down [E, D, F]."""

    up: Layout
    down: Layout
    rounded: Rounded

    def __post_init__(self) -> None:
        self.rounded.experts = left_by_norms(self.up.format)

    def __call__(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """x [T, D], weights float32 and chosen [T, k] -> [T, D]."""
        groups = grouping.group(chosen, self.up.numbers.shape[0], self.up.format)
        return experts.experts(self.rounded(x, self.up.format), weights, groups, self.up, self.down)

    @property
    def nbytes(self) -> int:
        return self.up.nbytes + self.down.nbytes

    def plain(self) -> tuple[Tensor, Tensor]:
        return self.up.dequantized().bfloat16(), self.down.dequantized().bfloat16()

    @property
    def tensors(self) -> dict[str, Tensor]:
        both = {"gate_up_proj": self.up, "down_proj": self.down}
        return {f"{name}.{part}": one for name, layout in both.items() for part, one in layout.tensors.items()}


def laid_out(form: str, state: State, native: bool) -> Layout:
    """What `state()` of a format's weight holds (formats/int4.py, int8.py), or what a checkpoint stores in fp8: numbers
    [..., N, ·] with their scales. native: NVFP4 goes to the card's own instructions.

    Raises ValueError for groups that no kernel takes.
    """
    if form in ("int8", "fp8"):
        kind = Int8 if form == "int8" else Fp8
        return kind(state["weight"].contiguous(), state["scale"].float().contiguous())
    size, group, e2m1 = (int(one) for one in state["shape"].tolist())
    packed, scale, zero, factor = state["packed"], state["scale"], state.get("zero"), state.get("factor")
    if e2m1 and native and scale.dtype is torch.float8_e4m3fn and group == 16 and size == 2 * packed.shape[-1]:
        return nvfp4_from(packed, scale, torch.ones(1, device=packed.device) if factor is None else factor)
    return from_nibbles(packed, scale, size, group, zero, factor, bool(e2m1))

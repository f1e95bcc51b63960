"""What a layer is built with: weights that own their number format.

A `Weight` is one matrix, `ExpertWeights` the stacked matrices of a mixture's experts, `Table` the embedding, which is
also the head. Layers call them and know no format; a new format is a subclass of the first two here and a line in
build.py. `state()` is what can be saved, in the format's plain tensors whatever the operations made of them; the names
are those of the model's `state_dict`, and `from_state` of the class is its inverse.

Shapes: N tokens, in and out sizes of a matrix, E experts, F expert width, D hidden, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from scumble.ops import Ops

# Where a native call that runs a whole layer finds a weight: panels, shift and scale; or, last, what is in four bits.
Addresses = tuple[int | None, int | None, int | None, int | None]


class _Stored(nn.Module):
    """A module whose tensors go into a state_dict as `state()` gives them."""

    format: ClassVar[str]
    ops: Ops

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Everything that is needed to make this again, by name."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Memory that it takes."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for name, tensor in self.state().items():
            destination[prefix + name] = tensor if keep_vars else tensor.detach()


class Weight(_Stored):
    """A matrix [out, in]."""

    @abstractmethod
    def product(self, x: Tensor) -> Tensor:
        """x [N, in] -> [N, out], in x's dtype."""

    @abstractmethod
    def rows(self, ids: Tensor) -> Tensor:
        """Some of its rows, [n, in], as floats."""

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)

    def laid_out(self) -> Any:
        """What `product` reads, for operations that serve several weights in one call; None: `product` alone may."""
        return None

    def addresses(self) -> Addresses | None:
        """For a native call that runs a whole layer; None where it cannot take this weight."""
        return None


class ExpertWeights(_Stored):
    """E gated MLPs: gate_up [E, 2F, D] (gate first) and down [E, D, F]."""

    @abstractmethod
    def mix(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """x [N, D], weights float32 and chosen int64 [N, k] -> weighted sum of the chosen experts' outputs [N, D]."""

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        return self.mix(x, weights, chosen)

    def addresses(self) -> tuple[Addresses, Addresses] | None:
        """As `Weight.addresses`, of gate_up and of down; what is in four bits is all at gate_up's."""
        return None


class Table(nn.Module):
    """The embedding [V, D] in float: rows for input, soft embeddings, and logits through `head`.

    head: what gives logits where not the table itself does: the table packed for native kernels, or in int8.
    """

    def __init__(self, weight: Tensor, ops: Ops):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.ops = ops
        self.head: Any = None

    def rows(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, self.weight)

    def forward(self, ids: Tensor) -> Tensor:
        return self.rows(ids)

    def product(self, hidden: Tensor) -> Tensor:
        """hidden [n, D] -> logits [n, V] before the soft-cap."""
        return self.ops.linear(hidden, self.weight) if self.head is None else self.head(hidden)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.head is None else self.head.nbytes)

    def _apply(self, fn: Any, recurse: bool = True) -> Table:
        self.head = None  # made of the table as it was
        return super()._apply(fn, recurse)


def empty(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape))

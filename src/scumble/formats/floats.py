"""Weights in the model's own float format: as they lie, or packed for operations that want them so."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scumble.formats.weight import Addresses, ExpertWeights, Weight
from scumble.ops import Ops


class FloatWeight(Weight):
    """A parameter [out, in]: mapped from a file, trained, or changed in place."""

    format = "float"

    def __init__(self, weight: Tensor, ops: Ops):
        super().__init__()
        self.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
        self.ops = ops

    @classmethod
    def from_state(cls, state: dict[str, Tensor], ops: Ops) -> FloatWeight:
        return cls(state["weight"], ops)

    def state(self) -> dict[str, Tensor]:
        return {"weight": self.weight}

    def product(self, x: Tensor) -> Tensor:
        return self.ops.linear(x, self.weight)

    def laid_out(self) -> Tensor | None:
        return self.weight

    def rows(self, ids: Tensor) -> Tensor:
        return self.weight[ids]

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes


class FloatExperts(ExpertWeights):
    """Parameters gate_up_proj [E, 2F, D] and down_proj [E, D, F]."""

    format = "float"

    def __init__(self, gate_up: Tensor, down: Tensor, ops: Ops):
        super().__init__()
        self.gate_up_proj = gate_up if isinstance(gate_up, nn.Parameter) else nn.Parameter(gate_up)
        self.down_proj = down if isinstance(down, nn.Parameter) else nn.Parameter(down)
        self.ops = ops

    @classmethod
    def from_state(cls, state: dict[str, Tensor], ops: Ops) -> FloatExperts:
        return cls(state["gate_up_proj"], state["down_proj"], ops)

    def state(self) -> dict[str, Tensor]:
        return {"gate_up_proj": self.gate_up_proj, "down_proj": self.down_proj}

    def mix(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        return self.ops.experts(x, weights, chosen, self.gate_up_proj, self.down_proj)

    @property
    def nbytes(self) -> int:
        return self.gate_up_proj.nbytes + self.down_proj.nbytes


class PackedWeight(Weight):
    """The same numbers as the operations packed them (`Ops.pack`); for inference, and not for gradients."""

    format = "float"

    def __init__(self, weight: Tensor, ops: Ops):
        super().__init__()
        self.ops, self.packed = ops, ops.pack(weight)

    @classmethod
    def from_state(cls, state: dict[str, Tensor], ops: Ops) -> PackedWeight:
        return cls(state["weight"], ops)

    def state(self) -> dict[str, Tensor]:
        return {"weight": self.packed.plain()}

    def product(self, x: Tensor) -> Tensor:
        return self.packed(x)

    def rows(self, ids: Tensor) -> Tensor:
        return self.packed.plain()[ids]

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def addresses(self) -> Addresses:
        return (*self.packed.base, None)


class PackedExperts(ExpertWeights):
    format = "float"

    def __init__(self, gate_up: Tensor, down: Tensor, ops: Ops):
        super().__init__()
        self.ops, self.packed = ops, ops.pack_experts(gate_up, down)

    @classmethod
    def from_state(cls, state: dict[str, Tensor], ops: Ops) -> PackedExperts:
        return cls(state["gate_up_proj"], state["down_proj"], ops)

    def state(self) -> dict[str, Tensor]:
        return dict(zip(("gate_up_proj", "down_proj"), self.packed.plain(), strict=True))

    def mix(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        return self.packed(x, weights, chosen)

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def addresses(self) -> tuple[Addresses, Addresses]:
        up, down = self.packed.bases
        return (*up, None), (*down, None)


def unpacked(module: nn.Module) -> nn.Module:
    """A packed weight as plain parameters; any other as it is."""
    with torch.no_grad():
        if isinstance(module, PackedWeight):
            return FloatWeight(module.packed.plain(), module.ops).requires_grad_(False)
        if isinstance(module, PackedExperts):
            gate_up, down = module.packed.plain()
            return FloatExperts(gate_up, down, module.ops).requires_grad_(False)
    return module

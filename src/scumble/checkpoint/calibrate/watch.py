"""What the linear layers and experts of one layer are given, gathered while samples run through it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scumble.formats.compensate import Inputs
from scumble.formats.floats import FloatExperts, FloatWeight
from scumble.ops import REFERENCE, Ops

# Modules with the same inputs: the first of each is watched.
SHARED = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}


class WatchedWeight(FloatWeight):
    """gram [in, in] float32: Σ x·xᵀ of all that it was given."""

    def __init__(self, weight: Tensor, ops: Ops):
        super().__init__(weight, ops)
        self.gram = torch.zeros(weight.shape[1], weight.shape[1])

    def product(self, x: Tensor) -> Tensor:
        wide = x.float()
        self.gram.addmm_(wide.T, wide)
        return super().product(x)

    def laid_out(self) -> None:
        return None  # every product is to be seen


class WatchedExperts(FloatExperts):
    """seen: inputs [N, D], weights [N, k] and chosen [N, k] of every call."""

    def __init__(self, gate_up: Tensor, down: Tensor, ops: Ops):
        super().__init__(gate_up, down, ops)
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def mix(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        self.seen.append((x.clone(), weights.clone(), chosen.clone()))
        return super().mix(x, weights, chosen)


class LayerInputs:
    """Of one layer, after samples ran through it. Modules by their names in it: "mlp.up_proj", "experts.7.down_proj".

    unreached: experts that no token chose; there is nothing to round them by.
    """

    def __init__(self, layer: nn.Module):
        """Watches the layer's float weights from now on."""
        self._layer = layer
        for path, module in list(layer.named_modules()):
            owner, _, name = path.rpartition(".")
            if isinstance(module, FloatWeight) and name not in SHARED:
                setattr(layer.get_submodule(owner), name, WatchedWeight(module.weight, module.ops))
            elif isinstance(module, FloatExperts):
                watched = WatchedExperts(module.gate_up_proj, module.down_proj, module.ops)
                setattr(layer.get_submodule(owner), name, watched)

    def finish(self) -> None:
        """Put together what was seen. No more samples after this."""
        experts = self._layer.get_submodule("experts")
        assert isinstance(experts, WatchedExperts)
        self._experts = experts
        inputs, weights, chosen = zip(*experts.seen, strict=True)
        experts.seen.clear()
        self._inputs, self._weights, self._chosen = torch.cat(inputs), torch.cat(weights), torch.cat(chosen)
        reached = self._chosen.flatten().bincount(minlength=len(experts.down_proj))
        self.unreached = [int(expert) for expert in (reached == 0).nonzero()[:, 0]]

    def source(self, module: str) -> str:
        """A name for what the module is given; modules with one name have the same inputs."""
        prefix, _, last = module.rpartition(".")
        return f"{prefix}.{SHARED.get(last, last)}"

    @torch.no_grad()
    def of(self, source: str) -> Inputs | None:
        """None where nothing was seen."""
        if not source.startswith("experts."):
            watched = self._layer.get_submodule(source)
            assert isinstance(watched, WatchedWeight)
            return Inputs.of(watched.gram)
        _, number, last = source.split(".")
        given = self._given(int(number), last == "down_proj")
        return None if not len(given) else Inputs.of(given.T @ given)

    def _given(self, expert: int, hidden: bool) -> Tensor:
        """What an expert was given [n, D], or made of it [n, F], in float32; times the weight that its result has."""
        rows, choice = (self._chosen == expert).nonzero(as_tuple=True)
        x = self._inputs[rows]
        if hidden:
            gate, up = (x @ self._experts.gate_up_proj[expert].T).chunk(2, dim=-1)
            x = REFERENCE.geglu(gate, up)
        return x.float() * self._weights[rows, choice][:, None]

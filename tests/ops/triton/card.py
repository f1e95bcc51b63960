"""A graphics card that is not there: tensors of device "cuda" that have sizes but no numbers (torch's fake tensors).
What would be captured on it is watched, operation by operation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scumble.diffusion import noise
from scumble.model import Transformer
from scumble.ops import Ops

CARD = torch.device("cuda", 0)


@contextmanager
def no_card() -> Iterator[None]:
    """Inside, tensors of device "cuda" may be made, and hold nothing. What is on the CPU holds nothing either."""
    with FakeTensorMode(allow_non_fake_inputs=True), _WithoutCuda():
        noise._constant.cache_clear()
        try:
            yield
        finally:
            noise._constant.cache_clear()  # it holds tensors


class _WithoutCuda(TorchFunctionMode):
    """Some methods look for the card's driver, which torch for the CPU alone does not have. Here they are written in
    operations that do not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return WRITTEN.get(func, func)(*args, **(kwargs or {}))


def _part(x: Tensor, index: Any) -> Tensor:
    dim, tensors = 0, []
    indices = index if isinstance(index, tuple) else (index,)
    for number, one in enumerate(indices):
        if one is Ellipsis:
            dim = x.ndim - sum(after is not None for after in indices[number + 1 :])
        elif one is None:
            x, dim = x.unsqueeze(dim), dim + 1
        elif isinstance(one, int):
            x = x.select(dim, one)
        elif isinstance(one, slice):
            x, dim = torch.ops.aten.slice(x, dim, one.start, one.stop, one.step or 1), dim + 1
        else:
            tensors += [None] * (dim - len(tensors)) + [one]
            dim += 1
    return torch.ops.aten.index(x, tensors) if tensors else x


def _set_part(x: Tensor, index: Any, value: Tensor) -> None:
    torch.ops.aten.copy_(_part(x, index), value)


def _contiguous(x: Tensor) -> Tensor:
    return x if x.is_contiguous() else x.clone(memory_format=torch.contiguous_format)


WRITTEN = {
    Tensor.__getitem__: _part,
    Tensor.__setitem__: _set_part,
    Tensor.__invert__: torch.bitwise_not,
    Tensor.contiguous: _contiguous,
    Tensor.copy_: torch.ops.aten.copy_,
}


class Captured(TorchDispatchMode):
    """Inside is what a CUDA graph is made of: every tensor is on the card, made there and read there. A copy between
    host and card cannot be captured, and a tensor on the host would be read once, when the graph is made.

    operations: what was run, less what only looks at a tensor in another way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, out)):
            if isinstance(tensor, Tensor) and tensor.device.type != "cuda":
                raise AssertionError(f"{func} with a tensor on the {tensor.device.type}: {list(tensor.shape)}")
        if not func.is_view and func.namespace == "aten" and "empty" not in func.name():
            self.operations.append(str(func))
        return out


def on_card(model: Transformer, ops: Ops) -> Transformer:
    """A model of device "meta" as one there."""
    return model.to_empty(device=CARD).use(ops)

"""Kernels see their tensors cut out of larger memory full of poison: no number, or a whole number that is no index.

The interpreter reads and writes whatever lies beside a tensor and says nothing. Here a kernel that writes there fails,
and what it reads there shows in its results.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from triton.runtime.jit import KernelInterface

BAND = 512  # bytes on either side; a multiple of what allocations are aligned to, so that alignments stay as they are


def poison(dtype: torch.dtype) -> Any:
    if dtype.is_floating_point:
        return float("nan")
    return True if dtype is torch.bool else torch.iinfo(dtype).max


class Guarded:
    """A copy of a tensor, with the same strides, between two bands."""

    def __init__(self, original: Tensor):
        self.original, self.band = original, BAND // original.element_size()
        extent = 1 + sum((size - 1) * step for size, step in zip(original.shape, original.stride(), strict=True))
        # A view may begin at any number of its memory: the copy is aligned as it is.
        offset = self.band + original.storage_offset() % self.band
        self.memory = torch.empty(offset + extent + self.band, dtype=original.dtype, device=original.device)
        # fill_ knows no float8 on some versions: their bytes of ones are no number either
        self.bytes = self.memory.view(torch.uint8)
        if original.element_size() == 1:
            self.bytes.fill_(255 if original.dtype is not torch.int8 else 127)
        else:
            self.memory.fill_(poison(original.dtype))
        self.copy = self.memory.as_strided(original.shape, original.stride(), offset)
        self.copy.copy_(original)
        self.before = self.bytes.clone()

    def returned(self, name: str) -> None:
        """The original becomes what the copy is now. Raises AssertionError where something else changed."""
        written = self.bytes.clone()
        own = written.view(self.memory.dtype).as_strided(
            self.copy.shape, self.copy.stride(), self.copy.storage_offset()
        )
        self.original.copy_(self.copy)
        own.copy_(self.before.view(self.memory.dtype).as_strided(own.shape, own.stride(), own.storage_offset()))
        assert torch.equal(written, self.before), f"{name} writes beside a tensor of shape {tuple(own.shape)}"


@contextmanager
def guarded() -> Iterator[None]:
    """Inside, all kernels run on guarded copies, whose results come back."""
    plain = KernelInterface.__getitem__

    def between_bands(kernel: Any, grid: Any) -> Any:
        def run(*arguments: Any, **constants: Any) -> None:
            known: dict[tuple[Any, ...], Guarded] = {}
            given = []
            for argument in arguments:
                if isinstance(argument, Tensor) and argument.numel():
                    key = argument.data_ptr(), argument.shape, argument.stride(), argument.dtype
                    argument = known.setdefault(key, Guarded(argument)).copy
                given.append(argument)
            plain(kernel, grid)(*given, **constants)
            for one in known.values():
                one.returned(kernel.fn.__name__)

        return run

    with patch.object(KernelInterface, "__getitem__", between_bands):
        yield

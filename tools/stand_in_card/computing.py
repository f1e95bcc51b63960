"""Lets the card that is not there compute, by way of the CPU. Imported before scumble, with --compute (README.md).

torch's operations run twice: as they are, on the card, where kernels do nothing but memory is taken and captures are
checked; then on CPU tensors over the same bytes, which gives the numbers. Triton's kernels run in its interpreter. In a
capture the second part is recorded; a replay runs what was recorded.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportMissingImports=false

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from triton.runtime import interpreter

from ops.triton import interpreter as repaired

LIBRARY = ctypes.CDLL(os.environ["STAND_IN_LIBRARY"])
LIBRARY.stand_in_bytes.restype = ctypes.c_void_p
LIBRARY.stand_in_bytes.argtypes = [ctypes.c_void_p]
CPU = torch.device("cpu")

# Operations whose kernels are another library's, which does not know this card; and those whose shapes are numbers.
FOREIGN = ("mm", "addmm", "bmm", "baddbmm", "_scaled_mm", "_grouped_mm", "convolution")
SHAPED_BY_NUMBERS = ("nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "repeat_interleave")
EMPTY = ("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "empty_permuted")
UNTOUCHED = ("detach", "set", "record_stream", "resize")

recording: list[Callable[[], None]] | None = None  # of the capture under way,
recorder: int | None = None  # and the thread that captures


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor over the same bytes."""
    storage = tensor.untyped_storage()
    if tensor.device.type != "cuda":
        return tensor
    if storage.nbytes() == 0:
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    at = LIBRARY.stand_in_bytes(storage.data_ptr())
    same = torch._C._construct_storage_from_data_pointer(at, CPU, storage.nbytes())
    return torch.empty(0, dtype=tensor.dtype).set_(same, tensor.storage_offset(), tensor.size(), tensor.stride())


def arguments_on_host(arguments: Any) -> Any:
    def one(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return on_host(value)
        if isinstance(value, torch.Generator):
            return None
        return CPU if isinstance(value, torch.device) else value

    return tree_map(one, arguments)


def do(call: Callable[[], None]) -> None:
    if recording is None or threading.get_ident() != recorder:
        call()
    else:
        recording.append(call)


def uploaded(tensor: torch.Tensor, made: Callable[[], torch.Tensor] | None = None) -> torch.Tensor:
    """A tensor of the card with these numbers. made: makes them anew, when a graph is replayed."""
    there = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cuda")

    def call() -> None:
        on_host(there).copy_(tensor if made is None else made())

    do(call)
    return there


def poisoned(tensor: torch.Tensor) -> None:
    """As torch fills new memory where it is asked to be deterministic."""
    host = on_host(tensor)
    if host.is_floating_point() and host.dtype.itemsize > 1:
        host.fill_(float("nan"))
    elif host.dtype is not torch.bool and not host.is_floating_point():
        host.fill_(torch.iinfo(host.dtype).max)


class Computing(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tree_leaves((args, kwargs))
        tensors = [value for value in given if isinstance(value, torch.Tensor)]
        devices = {value.device.type for value in tensors} | {v.type for v in given if isinstance(v, torch.device)}
        name = func.name().removeprefix("aten::").partition(".")[0]
        name = name.rstrip("_") if not name.startswith("_") else name
        if "cuda" not in devices or "meta" in devices or func.is_view or name in UNTOUCHED:
            return func(*args, **kwargs)
        host_args, host_kwargs = arguments_on_host(args), arguments_on_host(kwargs)
        if "pin_memory" in host_kwargs:
            host_kwargs["pin_memory"] = False
        masked = name in ("index", "index_put") and any(i is not None and i.dtype is torch.bool for i in args[1])
        if name in SHAPED_BY_NUMBERS or masked or name in ("_local_scalar_dense", "equal"):
            if threading.get_ident() == recorder:
                raise RuntimeError(f"{name} waits for the card within a capture")
            found = func(*host_args, **host_kwargs)
            return (
                args[0] if func.name().startswith("aten::index_put_") else tree_map_only(torch.Tensor, uploaded, found)
            )
        if name in FOREIGN:
            made = partial(func, *host_args, **host_kwargs)
            return uploaded(made(), made)
        real = func(*args, **kwargs)
        if name in EMPTY:
            if torch.are_deterministic_algorithms_enabled():
                do(lambda: poisoned(real))
            return real
        if isinstance(real, torch.Tensor) and real.device.type == "cpu":  # a copy to the host
            return func(*host_args, **host_kwargs)
        own = {value.untyped_storage().data_ptr() for value in tensors if value.device.type == "cuda"}
        results = [one for one in tree_leaves(real) if isinstance(one, torch.Tensor)]
        there = [None if one.untyped_storage().data_ptr() in own else on_host(one) for one in results]

        def call(keep: Any = (args, kwargs, real)) -> None:
            found = [one for one in tree_leaves(func(*host_args, **host_kwargs)) if isinstance(one, torch.Tensor)]
            for place, one in zip(there, found, strict=True):
                if place is not None:
                    place.copy_(one)

        do(call)
        return real


class Recorded(torch.cuda.CUDAGraph):
    """A graph whose replays run what its capture recorded."""

    def capture_begin(self, *args: Any, **kwargs: Any) -> None:
        global recording, recorder
        super().capture_begin(*args, **kwargs)
        self.calls = recording = []
        recorder = threading.get_ident()

    def capture_end(self) -> None:
        global recording, recorder
        recording = recorder = None
        super().capture_end()

    def replay(self) -> None:
        super().replay()
        with _disable_current_modes():
            for call in self.calls:
                call()


def install() -> None:
    """In this thread, and in those that begin later."""
    repaired.install()
    torch.zeros(1, device="cuda")
    for enable in ("flash", "mem_efficient", "cudnn"):  # attention by products, which FOREIGN names
        getattr(torch.backends.cuda, f"enable_{enable}_sdp")(False)
    torch.cuda.CUDAGraph = torch.cuda.graphs.CUDAGraph = Recorded
    run_grid, run_thread = interpreter.GridExecutor.__call__, threading.Thread.run

    def launched(self: Any, *args: Any, **kwargs: Any) -> None:
        devices = {value.device.type for value in args if isinstance(value, torch.Tensor) and value.numel()}
        if devices == {"cpu", "cuda"}:
            raise ValueError("a kernel is given memory of the host beside the card's")
        hosts = [on_host(value) if isinstance(value, torch.Tensor) else value for value in args]

        def call(keep: Any = args) -> None:
            with _disable_current_modes():
                run_grid(self, *hosts, **kwargs)

        do(call)

    def in_thread(self: threading.Thread) -> None:
        with Computing():
            run_thread(self)

    interpreter.GridExecutor.__call__ = launched
    threading.Thread.run = in_thread
    Computing().__enter__()

"""Memory that a process need not hold: freed pieces of the heap, and pages of a mapped file that are read no more."""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress
from pathlib import Path

from torch import Tensor

DONT_NEED = 4  # MADV_DONTNEED, on Linux


def give_back() -> None:
    """Hand freed memory back to the system where the C library can (glibc keeps pieces of it otherwise)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def let_go(tensor: Tensor) -> None:
    """Pages of a tensor that is mapped from a file and was not written to count no more as this process's memory.

    One that is read all the same comes back, from the system's file cache if it is still there. Linux; elsewhere, and
    for memory of another kind, nothing happens.
    """
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if tensor.device.type != "cpu" or begin >= end or not _is_of_a_file(begin, end):
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), DONT_NEED)


def _is_of_a_file(begin: int, end: int) -> bool:
    """Whether one mapping of a file has all of these addresses; other memory would be lost."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    for line in lines:
        addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
        first, last = (int(one, 16) for one in addresses.split("-"))
        if first <= begin and end <= last:
            return inode != "0"
    return False

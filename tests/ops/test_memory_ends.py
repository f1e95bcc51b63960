"""Kernels work in vectors of sixteen numbers, and memory ends where it ends: nothing beside a tensor is touched.

Tensors lie at the end of their pages here, or at the beginning, and the page beside them may not be read or written: a
kernel that does ends the process, which is one of its own.
"""

import subprocess
import sys

import pytest

from scumble.ops.cpu import native

pytestmark = pytest.mark.skipif(native.library() is None, reason="no compiler, or a processor without AVX2")

PAGES = """
import ctypes, mmap
from scumble.ops.cpu import native

lib, libc, PAGE, ROOM = native.library(), ctypes.CDLL(None), mmap.PAGESIZE, 4
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

def between_walls():
    start = libc.mmap(None, (ROOM + 2) * PAGE, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert libc.mprotect(start, PAGE, 0) == 0 and libc.mprotect(start + (ROOM + 1) * PAGE, PAGE, 0) == 0
    return start + PAGE

def places(size):
    "Of `size` bytes: at the end of pages, and at their beginning."
    return between_walls() + ROOM * PAGE - size, between_walls()

def both(*sizes):
    return zip(*(places(size) for size in sizes))
"""

KERNELS = {
    "gates": """
for n in range(1, 40):
    for gate, up, out in both(2 * n, 2 * n, 2 * n):
        lib.scumble_geglu(gate, up, out, n, 1)
""",
    "norms": """
for d in range(1, 40):
    for x, weight, out in both(2 * d, 2 * d, 2 * d):
        lib.scumble_rms_norm(x, weight, out, 1, d, d, 1e-6, 1)
    for x, weight, out, inverse in both(4 * d, 4 * d, 2 * d, 4):
        lib.scumble_train_norm(x, weight, out, inverse, 1, d, 1, 0, 1e-6, 1)
    for x, weight, out, inverse in both(2 * d, 4 * d, 4 * d, 4):
        lib.scumble_train_norm(x, weight, out, inverse, 1, d, 0, 1, 1e-6, 1)
""",
    "rounding to int8": """
for k in range(1, 40):
    for x, q, scale in both(2 * k, k, 4):
        lib.scumble_quantize_rows(x, q, scale, 1, k, 1)
""",
    "products of weights as they lie": """
for k in range(2, 72, 2):
    for columns in (1, 15, 17, 65):
        for x, weight, out in both(2 * k, 2 * k * columns, 2 * columns):
            lib.scumble_linear(x, None, weight, out, 1, k, columns, 1)
""",
    "attention": """
for k in range(2, 40, 2):
    for seen in (1, 2, 17):
        for first in (0, 1):
            for few in (0, 1):
                for q, keys, values, out in both(2 * k, 2 * k * seen, 2 * k * seen, 2 * k):
                    lib.scumble_attention(q, keys, values, out, 1, 1, 1, k, seen, seen * k, 0, first, few, 1)
""",
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_beside_a_tensor_is_touched(kernel):
    found = subprocess.run([sys.executable, "-c", PAGES + KERNELS[kernel]], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr or f"ended by signal {-found.returncode}"

"""bfloat16 products of any number of rows, in blocks of a few fixed sizes.

A matrix library prepares a bfloat16 kernel for every new shape, which takes longer than a small product itself, and
batches of texts never have the same shape twice. Where torch's bfloat16 is slow, the numbers are widened; products with
`out` are those that autocast leaves as they are.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from scumble.ops.quick import multiplies_bfloat16

SIZES = (1024, 768, 512, 384, 256, 192, 128, 64)  # rows of a block: its operands stay in the cache
QUICK = multiplies_bfloat16(torch.device("cpu"))
LEAST_ROWS = SIZES[-1]  # a shorter rest is filled up with zeros


def blocks(rows: int) -> Iterator[tuple[int, int]]:
    """`rows` cut into the largest of SIZES that still fits, again and again, and what is left: (begin, end) of each."""
    begin = 0
    for size in SIZES:
        while rows - begin >= size:
            yield begin, begin + size
            begin += size
    if begin < rows:
        yield begin, rows


def product(x: Tensor, matrix: Tensor, out: Tensor) -> None:
    """out [N, M] = x [N, K] · matrix [K, M], all bfloat16."""
    if not QUICK:
        out.copy_(torch.mm(x.float(), matrix.float(), out=x.new_empty(out.shape, dtype=torch.float32)))
        return
    for begin, end in blocks(x.shape[0]):
        if end - begin >= LEAST_ROWS:
            torch.mm(x[begin:end], matrix, out=out[begin:end])
        else:
            out[begin:end] = (_filled(x[begin:end]) @ matrix)[: end - begin]


def outer(left: Tensor, right: Tensor, out: Tensor) -> None:
    """out [M, K] float32 = leftᵀ · right, left [N, M] and right [N, K] bfloat16."""
    if not QUICK:
        torch.mm(left.float().T, right.float(), out=out)
        return
    out.zero_()
    for begin, end in blocks(left.shape[0]):
        a, b = left[begin:end], right[begin:end]
        if end - begin < LEAST_ROWS:
            a, b = _filled(a), _filled(b)
        out += a.T @ b


def _filled(rows: Tensor) -> Tensor:
    full = rows.new_zeros(LEAST_ROWS, rows.shape[1])
    full[: rows.shape[0]] = rows
    return full

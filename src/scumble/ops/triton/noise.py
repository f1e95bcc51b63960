"""Addressed random numbers on the card: Philox4x32-10 of (seed; position, pass, canvas, purpose).

The same numbers as diffusion/noise.py makes on the host.

A row's address is read from device memory, so a captured pass makes new noise each time it is replayed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scumble.ops.triton.launch import blocks, launch


@triton.jit
def _words(c0, c1, c2, c3, low, high):
    """Two random 32-bit words at counter (c0, c1, c2, c3) under key (low, high); all uint32."""
    for _ in tl.static_range(10):  # pyright: ignore[reportGeneralTypeIssues]
        left_high, left_low = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        right_high, right_low = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = right_high ^ c1 ^ low, right_low, left_high ^ c3 ^ high, left_low
        low += 0x9E3779B9
        high += 0xBB67AE85
    return c0, c1


@triton.jit
def _noise(seeds, canvases, passes, purposes, uniforms, ids, LENGTH, VOCAB, B: tl.constexpr):
    """B positions of one row a program. seeds [S, 2] (low, high word), the others [S]; all int32 used as 32 bits."""
    row = tl.program_id(1)
    position = tl.program_id(0) * B + tl.arange(0, B)
    none = tl.zeros((B,), tl.uint32)
    c1 = none + tl.load(passes + row).to(tl.uint32, bitcast=True)
    c2 = none + tl.load(canvases + row).to(tl.uint32, bitcast=True)
    c3 = none + tl.load(purposes + row).to(tl.uint32, bitcast=True)
    low = none + tl.load(seeds + row * 2).to(tl.uint32, bitcast=True)
    high = none + tl.load(seeds + row * 2 + 1).to(tl.uint32, bitcast=True)
    one, two = _words(position.to(tl.uint32), c1, c2, c3, low, high)
    bits = (one.to(tl.int64) << 21) ^ (two >> 11).to(tl.int64)  # 32 + 21 = 53 bits
    uniform = bits.to(tl.float64) * 1.1102230246251565e-16  # 2^-53
    at = row.to(tl.int64) * LENGTH + position
    tl.store(uniforms + at, uniform, mask=position < LENGTH)
    tl.store(ids + at, (uniform * VOCAB).to(tl.int64), mask=position < LENGTH)


def noise(
    seeds: Tensor, canvases: Tensor, passes: Tensor, purposes: Tensor, length: int, vocab: int
) -> tuple[Tensor, Tensor]:
    """Uniforms [S, length] float64 in [0, 1) and the same as ids 0 … vocab - 1, int64.

    seeds [S, 2] int32: low and high 32 bits; canvases, passes, purposes [S] int32. purpose: diffusion/noise.py's, plus
    four times the candidate.
    """
    rows = seeds.shape[0]
    uniforms = torch.empty(rows, length, dtype=torch.float64, device=seeds.device)
    ids = torch.empty(rows, length, dtype=torch.int64, device=seeds.device)
    arguments = (seeds, canvases, passes, purposes, uniforms, ids, length, vocab)
    launch("noise", _noise, (blocks(length, 128), rows), arguments, B=128)
    return uniforms, ids

"""Addressed random numbers on the card: Philox4x32-10 of (seed; position, pass, canvas, purpose).

The numbers that diffusion/noise.py makes, in one launch in the place of some 130 of torch. A canvas's address is read
from device memory, so a captured pass makes new noise each time it is replayed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scumble.ops.triton.launch import blocks, launch

PROPOSAL, RENOISE = tl.constexpr(1), tl.constexpr(2)  # purposes, as diffusion/noise.py numbers them


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
def _uniform(c0, c1, c2, c3, low, high):
    """53 random bits as a number in [0, 1), float64."""
    one, two = _words(c0, c1, c2, c3, low, high)  # pyright: ignore[reportGeneralTypeIssues]
    bits = (one.to(tl.int64) << 21) ^ (two >> 11).to(tl.int64)
    return bits.to(tl.float64) * 1.1102230246251565e-16  # 2^-53


@triton.jit
def _noise(words, passes, uniforms, ids, LENGTH, VOCAB, B: tl.constexpr):
    """B positions of one canvas a program. words [S, 4] int64: seed (low, high), candidate, canvas; passes [S]."""
    row = tl.program_id(1).to(tl.int64)
    position = tl.program_id(0) * B + tl.arange(0, B)
    none = tl.zeros((B,), tl.uint32)
    low = none + tl.load(words + row * 4).to(tl.uint32)
    high = none + tl.load(words + row * 4 + 1).to(tl.uint32)
    candidate = none + tl.load(words + row * 4 + 2).to(tl.uint32) * 4
    canvas = none + tl.load(words + row * 4 + 3).to(tl.uint32)
    number = none + tl.load(passes + row).to(tl.uint32)
    place = position.to(tl.uint32)
    at, inside = row * LENGTH + position, position < LENGTH
    tl.store(uniforms + at, _uniform(place, number, canvas, candidate + PROPOSAL, low, high), mask=inside)
    renoise = _uniform(place, number, canvas, candidate + RENOISE, low, high)
    tl.store(ids + at, (renoise * VOCAB).to(tl.int64), mask=inside)


def noise(words: Tensor, passes: Tensor, length: int, vocab: int) -> tuple[Tensor, Tensor]:
    """Of S canvases (words as `Address` in diffusion/noise.py has them) in pass passes [S] int64: uniforms [S, length]
    float64 in [0, 1) for the proposals, and ids [S, length] int64, 0 … vocab - 1, to renoise."""
    rows = words.shape[0]
    uniforms = torch.empty(rows, length, dtype=torch.float64, device=words.device)
    ids = torch.empty(rows, length, dtype=torch.int64, device=words.device)
    launch("noise", _noise, (blocks(length, 128), rows), (words, passes, uniforms, ids, length, vocab), B=128)
    return uniforms, ids

"""The inner loop of every matrix product, by format of the weight. `linear` and `experts` are made of it.

    sum[n, m] = Σ_k weight[rows[n], k] · x[tokens[m], k]        float32 [BN, BM]

The weight is the left operand, the tokens are the right one: a tensor core takes 64 rows at least on its left and 8 on
its right, and an expert has 16 tokens as a rule. K is walked in steps of a fixed size from 0 up, whatever N and M.

Formats (layouts.py): "plain"; "fp8", "int8" and "nvfp4" (both operands narrow); words of four-bit numbers, "int4",
"zero" and "e2m1" (unpacked in registers).
"""

from __future__ import annotations

import triton
import triton.language as tl

from scumble.ops.triton.geglu import gelu_tanh


@triton.jit
def weighted_sum(
    x, x_groups, x_factor, tokens, live, weight, groups, factor, matrix, n, rows_ok, N,
    K: tl.constexpr, FORMAT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """x [T, K]; tokens [BM] int64 row numbers, live [BM]; weight [·, N, K]: of its matrices number `matrix` (int64, or
    0), of that rows n [BN], where rows_ok [BN].

    Scales, where a format has them: groups and x_groups of runs of inputs, factor and x_factor of whole rows. weight,
    groups and factor: a pointer each, or a pointer for every row [BN], where rows are of several matrices.
    """
    rows = n.to(tl.int64) + matrix * N
    if FORMAT == "int4" or FORMAT == "zero" or FORMAT == "e2m1":
        total = _words(x, tokens, live, weight, groups, factor, matrix, n, rows, rows_ok, N, K, FORMAT, BM, BN)
    elif FORMAT == "nvfp4":
        total = _nvfp4(x, x_groups, tokens, live, weight, groups, rows, rows_ok, K, BM, BN, BK)
    else:
        total = _plain(x, tokens, live, weight, rows, rows_ok, K, FORMAT, BM, BN, BK)
    if FORMAT == "fp8" or FORMAT == "int8" or FORMAT == "nvfp4" or FORMAT == "e2m1":
        total *= tl.load(factor + rows, mask=rows_ok, other=0.0)[:, None]
    if FORMAT == "fp8" or FORMAT == "int8" or FORMAT == "nvfp4":
        total *= tl.load(x_factor + tokens, mask=live, other=0.0)[None, :]
    return total


@triton.jit
def _plain(
    x, tokens, live, weight, rows, rows_ok, K: tl.constexpr, FORMAT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    nothing = 0 if FORMAT == "int8" else 0.0
    total = tl.zeros((BN, BM), tl.int32 if FORMAT == "int8" else tl.float32)
    k = tl.arange(0, BK)
    w_at = (weight + rows * K)[:, None] + k[None, :]
    x_at = x + tokens[None, :] * K + k[:, None]
    for first in range(0, K, BK):
        inside = k < K - first
        w = tl.load(w_at + first, mask=rows_ok[:, None] & inside[None, :], other=nothing)
        t = tl.load(x_at + first, mask=live[None, :] & inside[:, None], other=nothing)
        if FORMAT == "fp8":  # Hopper keeps 14 bits of a long fp8 sum; each step's sum joins the others in float32
            total = tl.dot(w, t, total, max_num_imprecise_acc=BK)
        elif FORMAT == "int8":
            total = tl.dot(w, t, total, out_dtype=tl.int32)
        else:
            total = tl.dot(w, t, total, input_precision="ieee")
    return total.to(tl.float32)


# Two words of a block hold nibble i of two neighbours, in their low halves (i < 4) or in their high ones. Side by side
# in one register, both are unpacked by each instruction: 0x4300 | q is 128 + q in bfloat16.
_PAIR: tl.constexpr = tl.constexpr("""{
    .reg .b32 pair;
    prmt.b32 pair, $1, $2, $3;
    shr.b32 pair, pair, $5;
    lop3.b32 $0, pair, 0x000F000F, 0x43004300, 0xEA;
}""")
# The same for e2m1: a sign and three bits of exponent and fraction go to their places; that is 2^-126 of the value.
_PAIR_E2M1: tl.constexpr = tl.constexpr("""{
    .reg .b32 pair, sign;
    prmt.b32 pair, $1, $2, $3;
    shr.b32 pair, pair, $5;
    shl.b32 sign, pair, 12;
    and.b32 sign, sign, 0x80008000;
    shl.b32 pair, pair, 6;
    lop3.b32 $0, pair, 0x01C001C0, sign, 0xEA;
}""")


@triton.jit
def _run(packed, i: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Nibble i of words int32 [BN, 16], as the assembly makes it a bfloat16."""
    return tl.inline_asm_elementwise(
        ASSEMBLY, "=r,r,r,r,r,r,r", [packed, 0x5410 if i < 4 else 0x7632, 4 * (i % 4)],  # pyright: ignore[reportArgumentType]
        dtype=tl.bfloat16, is_pure=True, pack=2,
    )  # fmt: skip


@triton.jit
def _words(
    x, tokens, live, words, groups, zeros, matrix, n, rows, rows_ok, N,
    K: tl.constexpr, KIND: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Blocks of 128 numbers are 16 words a row; nibble i of them is the run of numbers 16·i … 16·i + 15.

    KIND: how a nibble becomes a number (`Int4` in layouts.py). Numbers are rounded once, to bfloat16. groups, and zeros
    of "zero": a block's scales of a row side by side, in words of 64 bits.
    """
    blocks: tl.constexpr = (K + 127) // 128
    BITS: tl.constexpr = 32 if KIND == "zero" else 16  # pyright: ignore[reportAssignmentType] # of a scale
    GROUP: tl.constexpr = 16 if KIND == "e2m1" else 32  # pyright: ignore[reportAssignmentType]
    WORDS: tl.constexpr = 128 // GROUP * BITS // 64  # words of scales a row and block
    total = tl.zeros((BN, BM), tl.float32)
    j = tl.arange(0, 16)
    w_at = (words + rows * (blocks * 16))[:, None] + j[None, :]
    x_at = x + tokens[None, :] * K + j[:, None]
    s_at = (matrix * blocks * N + n) * WORDS
    for block in range(0, blocks):
        packed = tl.load(w_at + block * 16, mask=rows_ok[:, None], other=0)
        for i in tl.static_range(8):  # pyright: ignore[reportGeneralTypeIssues]
            k = block * 128 + i * 16
            inside = live[None, :]
            if K % 16 != 0:
                inside = inside & (j < K - k)[:, None]
            elif K % 128 != 0:
                inside = inside & (k < K)
            t = tl.load(x_at + k, mask=inside, other=0.0)
            group = i * 16 // GROUP
            at = s_at + block * N * WORDS + group * BITS // 64
            if i * 16 % (GROUP * 64 // BITS) == 0:
                steps = tl.load(groups + at, mask=rows_ok, other=0)
                zero_points = tl.load(zeros + at, mask=rows_ok, other=0) if KIND == "zero" else steps
            step = _field(steps, group * BITS % 64, BITS)[:, None]
            if KIND == "int4":  # the difference is exact, the product rounds once
                w = (_run(packed, i, _PAIR) - 136.0) * step
            elif KIND == "e2m1":  # likewise
                w = (_run(packed, i, _PAIR_E2M1) * 8.507059173023462e37) * step
            else:
                q = ((packed >> (4 * i)) & 15).to(tl.float32)
                w = ((q - _field(zero_points, group * BITS % 64, BITS)[:, None]) * step).to(tl.bfloat16)
            total = tl.dot(w.to(t.dtype), t, total, input_precision="ieee")
    return total


@triton.jit
def _field(words, first: tl.constexpr, BITS: tl.constexpr):
    """Bits from `first` on of words int64, as bfloat16 (16 of them) or float32."""
    if BITS == 16:
        part = (words >> first).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        part = (words >> first).to(tl.int32).to(tl.float32, bitcast=True)
    return part


@triton.jit
def _nvfp4(
    x, x_groups, tokens, live, packed, groups, rows, rows_ok, K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Two e2m1 numbers a byte; groups of 16 share an e4m3 scale, on both sides."""
    total = tl.zeros((BN, BM), tl.float32)
    byte, group = tl.arange(0, BK // 2), tl.arange(0, BK // 16)
    for first in range(0, K, BK):
        b, g = first // 2 + byte, first // 16 + group
        w = tl.load(
            (packed + rows * (K // 2))[:, None] + b[None, :], mask=rows_ok[:, None] & (b < K // 2)[None, :], other=0
        )
        ws = tl.load(
            (groups + rows * (K // 16))[:, None] + g[None, :], mask=rows_ok[:, None] & (g < K // 16)[None, :], other=0.0
        )
        t = tl.load(x + tokens[None, :] * (K // 2) + b[:, None], mask=live[None, :] & (b < K // 2)[:, None], other=0)
        ts = tl.load(
            x_groups + tokens[:, None] * (K // 16) + g[None, :], mask=live[:, None] & (g < K // 16)[None, :], other=0.0
        )
        total = tl.dot_scaled(w, ws, "e2m1", t, ts, "e2m1", total)
    return total


@triton.jit
def gated(both, like, BM: tl.constexpr, BN: tl.constexpr):
    """gelu_tanh(gate) · up of sums [2·BN, BM], gate first -> float32 [BN, BM], rounded where two steps would round.

    Row n and row BN + n lie in the same thread, so the halves come apart without moving.
    """
    gate, up = tl.split(tl.permute(tl.reshape(both, (2, BN, BM)), (1, 2, 0)))
    gate = gate.to(like.dtype.element_ty).to(tl.float32)
    up = up.to(like.dtype.element_ty).to(tl.float32)
    return gelu_tanh(gate).to(like.dtype.element_ty).to(tl.float32) * up

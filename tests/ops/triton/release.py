"""All operations on tensors of the release's shape without memory: what a pass would launch, by architecture."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from scumble.ops import VocabQuery
from scumble.ops.classes import Classified, TokenClasses
from scumble.ops.pages import Destination
from scumble.ops.triton import (
    activations,
    attention,
    experts,
    geglu,
    grouping,
    layouts,
    linear,
    noise,
    norms,
    rotate,
    router,
    vocab,
    vocab_classes,
)  # fmt: skip
from scumble.ops.triton.launch import Launch, recorded, tile_table

HIDDEN, MLP, EXPERTS, CHOICES, WIDTH, VOCABULARY = 2816, 2112, 128, 8, 704, 262_144
CANVAS, ROWS = 256, 2
EPS = 1e-6


KINDS = {"int4": ("int4", "zero", "e2m1")}  # ways in which numbers of a format may be stored
DTYPE = torch.bfloat16  # of activations, and of weights in the plain format


def empty(*shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype or DTYPE, device="meta")


def weight(format: str, *shape: int) -> layouts.Layout:
    """A weight of the release in a format, without memory."""
    *front, outputs, inputs = shape
    match format:
        case "fp8":
            return layouts.Fp8(empty(*shape, dtype=torch.float8_e4m3fn), empty(*front, outputs, dtype=torch.float32))
        case "int8":
            return layouts.Int8(empty(*shape, dtype=torch.int8), empty(*front, outputs, dtype=torch.float32))
        case "int4" | "zero" | "e2m1":
            width = -(-inputs // layouts.BLOCK) * layouts.BLOCK
            words = empty(*front, outputs, width // 8, dtype=torch.int32)
            groups = layouts.BLOCK // (layouts.FP4_GROUP if format == "e2m1" else layouts.GROUP)
            sizes = *front, width // layouts.BLOCK, outputs, groups
            scale = empty(*sizes, dtype=torch.float32 if format == "zero" else torch.bfloat16)
            zero = empty(*sizes, dtype=torch.float32) if format == "zero" else None
            factor = empty(*front, outputs, dtype=torch.float32) if format == "e2m1" else None
            return layouts.Int4(words, scale, inputs, zero, factor)
        case "nvfp4":
            packed = empty(*front, outputs, inputs // 2, dtype=torch.uint8)
            scale = empty(*front, outputs, inputs // 16, dtype=torch.float8_e4m3fn)
            return layouts.Nvfp4(packed, scale, empty(*front, outputs, dtype=torch.float32))
        case _:
            return layouts.Plain(empty(*shape))


def launches(arch: int, table: Path, dtype: torch.dtype = torch.bfloat16) -> list[Launch]:
    """What passes in every format of this architecture would launch."""
    global DTYPE
    DTYPE = dtype
    have = tile_table(table)[arch]
    formats = [format for format in ("plain", "fp8", "int8", "int4", "nvfp4") if f"up {format}" in have]
    with recorded(arch, tile_table(table)) as made:
        _norms(have)
        _heads()
        _router()
        _vocabulary()
        for format in formats:
            for kind in KINDS.get(format, (format,)):
                _experts(format, kind)
                if f"linear {format}" in have:
                    _dense(format, kind)
    return made


def _norms(have: Collection[str]) -> None:
    tokens = ROWS * CANVAS
    x, one = empty(tokens, HIDDEN), empty(HIDDEN)
    for format in ("plain", *(format for format in activations.BY_ROW if f"linear {format}" in have)):
        norms.norm_for(x, one, EPS, format)
        for experts_format in {"plain", format}:
            norms.attention_tail_for(x, x, (one, one, one), EPS, (format, experts_format))
    norms.norm(x, None, EPS)
    geglu.geglu(empty(tokens, MLP), empty(tokens, MLP))
    scalars = (empty(1), empty(1))
    norms.layer_tail(x, (x, x), (one, one, one), empty(tokens, 1, dtype=torch.bool), scalars, EPS)


def _heads() -> None:
    """Projected heads to mixed values: of canvases and of single steps, over pages and over one row's cache."""
    for dim, groups, keys in ((256, 8, 1023 + CANVAS), (512, 2, 1024 + CANVAS)):
        for tokens, rows, step in ((ROWS * CANVAS, ROWS, False), (8, 8, True)):
            q, cos = empty(tokens, 16, dim), empty(tokens, 1, dim)
            pool = empty(64 * 1024, groups, dim)
            is_shared, places = dim == 512, empty(tokens, dtype=torch.int64)
            both = empty(tokens, (16 + groups * (1 if is_shared else 2)) * dim)
            for to in (None, Destination(pool, pool, places)):
                rotate.heads(both, (empty(dim), empty(dim)), (cos, cos), groups, is_shared, EPS, to)
            q = rotate.norm_rope(q, empty(dim), cos, cos, EPS)
            number = empty(tokens, dtype=torch.int32)
            alone = attention.one_row(number, number, 16 // groups, attention.name_of(dim, step))
            cache = empty(groups, 1024, dim).transpose(0, 1)
            for seen in (1024, 100):  # in several runs of keys, and in one
                attention.attend(q, cache, cache, alone, seen, step=step)
            pages = empty(rows, keys // 128, dtype=torch.int32)
            attention.attend(q, pool, pool, alone, keys, pages, 128, step=step)


def _router() -> None:
    h = empty(ROWS * CANVAS, HIDDEN)
    router.router(h, empty(HIDDEN), empty(EXPERTS, HIDDEN), empty(EXPERTS), CHOICES, EPS)
    words, passes = (empty(*shape, dtype=torch.int64) for shape in ((ROWS, 4), (ROWS,)))
    noise.noise(words, passes, CANVAS, VOCABULARY)


def _vocabulary() -> None:
    hidden, embedding = empty(ROWS * CANVAS, HIDDEN), empty(VOCABULARY, HIDDEN)
    n = hidden.shape[0]
    heat = empty(n, dtype=torch.float32)
    uniforms, targets = empty(n, dtype=torch.float64), empty(n, dtype=torch.int64)
    vocab.vocab_head(hidden, embedding, VocabQuery(heat, uniforms=uniforms, want_soft=True), cap=30.0)
    vocab.vocab_head(hidden, embedding, VocabQuery(heat, uniforms=uniforms), cap=30.0)  # the last pass of a canvas
    linear.linear(activations.for_format(hidden, "plain"), weight("plain", VOCABULARY, HIDDEN))  # all logits of steps
    vocab.vocab_head(hidden, embedding, VocabQuery(top=5, targets=targets), cap=30.0)  # log-probabilities of texts
    allowed = empty(n, VOCABULARY, dtype=torch.bool)
    vocab.vocab_head(hidden, embedding, VocabQuery(heat, allowed, uniforms, want_soft=True), cap=30.0)
    for mask in (None, allowed):
        for soft in (False, True):
            _classes(hidden, embedding, VocabQuery(heat, mask, want_soft=soft))
    vocab.vocab_head(hidden, embedding, VocabQuery(heat, allowed, uniforms, top=5, targets=targets), cap=30.0)


def _classes(hidden: torch.Tensor, embedding: torch.Tensor, query: VocabQuery) -> None:
    """For a structure as well: up to what the host reads, and the logits of a draw."""

    def finish(own: vocab_classes.CardClasses) -> None:
        own.joined()
        own.members(empty(CANVAS, dtype=torch.int64), empty(CANVAS, vocab_classes.PIECE, dtype=torch.int32))

    classified = Classified(TokenClasses(np.arange(VOCABULARY) % 100, 100), 0, CANVAS)
    with patch.object(vocab_classes.CardClasses, "finish", finish):
        vocab.vocab_head(hidden, embedding, replace(query, classes=[classified]), cap=30.0)


def _experts(format: str, kind: str) -> None:
    tokens = ROWS * CANVAS
    chosen = empty(tokens, CHOICES, dtype=torch.int64)
    groups = grouping.group(chosen, EXPERTS, format)
    x = activations.for_format(empty(tokens, HIDDEN), format)
    up, down = weight(kind, EXPERTS, 2 * WIDTH, HIDDEN), weight(kind, EXPERTS, HIDDEN, WIDTH)
    experts.experts(x, empty(tokens, CHOICES, dtype=torch.float32), groups, up, down)


def _dense(format: str, kind: str) -> None:
    for tokens, step in ((ROWS * CANVAS, False), (ROWS, True)):
        x = activations.for_format(empty(tokens, HIDDEN), format)
        linear.gated_linear(x, weight(kind, MLP, HIDDEN), weight(kind, MLP, HIDDEN), step=step)
        linear.linear(activations.for_format(empty(tokens, MLP), format), weight(kind, HIDDEN, MLP), step=step)
        for heads in ((16 * 256, 8 * 256, 8 * 256), (16 * 512, 2 * 512)):
            linear.linear(x, *(weight(kind, size, HIDDEN) for size in heads), step=step)
            mixed = activations.for_format(empty(tokens, heads[0]), format)
            linear.linear(mixed, weight(kind, HIDDEN, heads[0]), step=step)

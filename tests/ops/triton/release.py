"""All operations on tensors of the release's shape without memory: what a pass would launch, by architecture."""

from __future__ import annotations

from pathlib import Path

import torch

from scumble.ops.triton import activations, experts, grouping, layouts, linear, norms
from scumble.ops.triton.launch import Launch, recorded, tile_table

HIDDEN, MLP, EXPERTS, CHOICES, WIDTH, VOCABULARY = 2816, 2112, 128, 8, 704, 262_144
CANVAS, ROWS = 256, 2
EPS = 1e-6


DTYPE = torch.bfloat16  # of activations, and of weights in the plain format


def empty(*shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype or DTYPE, device="meta")


def weight(format: str, *shape: int) -> layouts.Weight:
    """A weight of the release in a format, without memory."""
    *front, outputs, inputs = shape
    match format:
        case "fp8":
            return layouts.Fp8(empty(*shape, dtype=torch.float8_e4m3fn), empty(*front, outputs, dtype=torch.float32))
        case "int4":
            width = -(-inputs // layouts.BLOCK) * layouts.BLOCK
            words = empty(*front, outputs, width // 8, dtype=torch.int32)
            return layouts.Int4(words, empty(*front, width // layouts.GROUP, outputs, dtype=torch.bfloat16), inputs)
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
    formats = [format for format in ("plain", "fp8", "int4", "nvfp4") if f"up {format}" in have]
    with recorded(arch, tile_table(table)) as made:
        _norms()
        for format in formats:
            _experts(format)
            if f"linear {format}" in have:
                _dense(format)
    return made


def _norms() -> None:
    tokens = ROWS * CANVAS
    x, one = empty(tokens, HIDDEN), empty(HIDDEN)
    norms.norm(x, one, EPS)
    norms.attention_tail(x, x, one, one, one, EPS)
    scalars = (empty(1), empty(1))
    norms.layer_tail(x, (x, x), (one, one, one), empty(tokens, 1, dtype=torch.bool), scalars, EPS)


def _experts(format: str) -> None:
    tokens = ROWS * CANVAS
    chosen = empty(tokens, CHOICES, dtype=torch.int32)
    groups = grouping.group(chosen, EXPERTS, format)
    x = activations.for_format(empty(tokens, HIDDEN), format)
    up, down = weight(format, EXPERTS, 2 * WIDTH, HIDDEN), weight(format, EXPERTS, HIDDEN, WIDTH)
    experts.experts(x, empty(tokens, CHOICES, dtype=torch.float32), groups, up, down)


def _dense(format: str) -> None:
    for tokens, step in ((ROWS * CANVAS, False), (ROWS, True)):
        x = activations.for_format(empty(tokens, HIDDEN), format)
        linear.linear(x, weight(format, 2 * MLP, HIDDEN), gated=True, step=step)
        linear.linear(activations.for_format(empty(tokens, MLP), format), weight(format, HIDDEN, MLP), step=step)
        for heads in (16 * 256, 16 * 512, 8 * 256, 2 * 512):
            linear.linear(x, weight(format, heads, HIDDEN), step=step)

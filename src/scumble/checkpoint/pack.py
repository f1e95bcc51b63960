"""How `convert` writes a matrix: each format's tensors, their shapes, and compressed-tensors' words for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scumble.checkpoint.schemes.bits import pack_nibbles
from scumble.checkpoint.stream import Slot
from scumble.formats import int4
from scumble.formats.compensate import Grid
from scumble.formats.int4 import FP4

NVFP4_GROUP = 16
LARGEST_FP8, LARGEST_FP4 = 448.0, 6.0
# Where E2M1's neighbours meet; halfway, a number goes to the one whose last bit is 0.
BORDERS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)


@dataclass(frozen=True)
class Packing:
    """format: compressed-tensors' name. weights: its settings. group: what columns must be a multiple of.

    slots(module, rows, columns): what is stored. pack(weight [rows, columns]): the same tensors, in that order.
    activations: how activations are rounded where products are taken in the format; None: they stay.
    grid: the numbers that there are, where calibration may choose among them; store(numbers, steps) gives what `pack`
    gives, of whole numbers on the grid int8 [rows, columns] and steps bfloat16 [rows, groups].
    """

    format: str
    weights: dict[str, Any]
    group: int
    slots: Callable[[str, int, int], list[Slot]]
    pack: Callable[[Tensor], list[Tensor]]
    activations: dict[str, Any] | None = None
    grid: Grid | None = None
    store: Callable[[Tensor, Tensor], list[Tensor]] | None = None

    def settings(self, ignore: list[str]) -> dict[str, Any]:
        """quantization_config."""
        scheme = {
            "targets": ["Linear"], "weights": self.weights, "input_activations": self.activations,
            "output_activations": None, "format": self.format,
        }  # fmt: skip
        return {
            "quant_method": "compressed-tensors", "format": self.format, "quantization_status": "compressed",
            "config_groups": {"group_0": scheme}, "ignore": ignore, "kv_cache_scheme": None,
        }  # fmt: skip


def packing(form: str, group: int) -> Packing:
    """For "int4", "int8", "fp8" or "nvfp4"."""
    return {"int4": _int4, "int8": _int8, "fp8": _fp8, "nvfp4": _nvfp4}[form](group)


def _int4(group: int) -> Packing:
    def slots(module: str, rows: int, columns: int) -> list[Slot]:
        return [
            Slot(f"{module}.weight_packed", "I32", (rows, columns // 8)),
            Slot(f"{module}.weight_scale", "BF16", (rows, columns // group)),
            Slot(f"{module}.weight_shape", "I64", (2,)),
        ]

    def pack(weight: Tensor) -> list[Tensor]:
        matrix = int4.quantize(weight, group)
        return [matrix.packed.view(torch.int32), matrix.scale, torch.tensor(weight.shape)]

    def store(numbers: Tensor, steps: Tensor) -> list[Tensor]:
        packed = pack_nibbles((numbers + 8).to(torch.uint8))
        return [packed.view(torch.int32), steps, torch.tensor(numbers.shape)]

    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": group}
    return Packing("pack-quantized", weights, group, slots, pack, grid=Grid(-8, 7, group), store=store)


def _by_channel(dtype: str) -> Callable[[str, int, int], list[Slot]]:
    return lambda module, rows, columns: [
        Slot(f"{module}.weight", dtype, (rows, columns)),
        Slot(f"{module}.weight_scale", "BF16", (rows, 1)),
    ]


def _scaled(weight: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """weight over its channels' scales, and the scales, rounded to bfloat16 first."""
    scale = (weight.float().abs().amax(1, keepdim=True) / largest).bfloat16()
    step = torch.where(scale == 0, 1.0, scale.float())
    return weight.float() / step, scale


def _int8(_: int) -> Packing:
    def pack(weight: Tensor) -> list[Tensor]:
        numbers, scale = _scaled(weight, 127)
        return [numbers.round_().clamp_(-128, 127).to(torch.int8), scale]

    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    grid = Grid(-127, 127, None)
    return Packing("int-quantized", weights, 4, _by_channel("I8"), pack, activations, grid, lambda *both: [*both])


def _fp8(_: int) -> Packing:
    def pack(weight: Tensor) -> list[Tensor]:
        numbers, scale = _scaled(weight, LARGEST_FP8)
        return [numbers.clamp_(-LARGEST_FP8, LARGEST_FP8).to(torch.float8_e4m3fn), scale]

    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
    activations = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}
    return Packing("float-quantized", weights, 4, _by_channel("F8_E4M3"), pack, activations)


def _nvfp4(_: int) -> Packing:
    def slots(module: str, rows: int, columns: int) -> list[Slot]:
        return [
            Slot(f"{module}.weight_packed", "U8", (rows, columns // 2)),
            Slot(f"{module}.weight_scale", "F8_E4M3", (rows, columns // NVFP4_GROUP)),
            Slot(f"{module}.weight_global_scale", "F32", (1,)),
        ]

    weights = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": NVFP4_GROUP}
    return Packing("nvfp4-pack-quantized", weights, NVFP4_GROUP, slots, pack_nvfp4)


def pack_nvfp4(weight: Tensor) -> list[Tensor]:
    """Numbers E2M1, a scale E4M3 for 16 of them, and one float32 that makes the largest scale the largest E4M3."""
    groups = weight.float().unflatten(1, (-1, NVFP4_GROUP))
    most = groups.abs().amax(2)
    shared = LARGEST_FP8 * LARGEST_FP4 / most.max().clamp(min=1e-30)
    scale = (most / LARGEST_FP4 * shared).clamp(max=LARGEST_FP8).to(torch.float8_e4m3fn)
    step = scale.float() / shared
    numbers = (groups / torch.where(step == 0, 1.0, step)[:, :, None]).flatten(1)
    nibbles = round_fp4(numbers)
    return [nibbles[:, 0::2] | nibbles[:, 1::2] << 4, scale, shared.reshape(1)]


def round_fp4(x: Tensor) -> Tensor:
    """Numbers -> nibbles of the nearest E2M1."""
    size = x.abs()
    nibble = torch.zeros(x.shape, dtype=torch.uint8)
    for index, border in enumerate(BORDERS):
        nibble += size >= border if index % 2 else size > border  # halfway: to the even nibble
    return nibble | (x < 0).to(torch.uint8) << 3


assert len(FP4) == 16

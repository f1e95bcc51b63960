"""One linear layer's weight as a tool stored it: its tensors, checked against the scheme, and the numbers they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from scumble.checkpoint.files import Stored
from scumble.checkpoint.raw import map_stored, read_stored
from scumble.checkpoint.schemes import bits
from scumble.checkpoint.schemes.scheme import Scheme
from scumble.errors import CheckpointError
from scumble.formats.int4 import Int4Matrix

FLOATS = ("F64", "F32", "F16", "BF16")
# Tensors beside a weight that say how activations, keys or values are scaled on GPUs; nothing here needs them.
CACHE_SCALES = frozenset(("k_scale", "v_scale", "q_scale", "k_zero_point", "v_zero_point"))
ACTIVATION_SCALES = CACHE_SCALES | {"input_scale", "input_global_scale", "input_zero_point", "output_scale"}
# Names of the tensors of a layout: what must be there, and what may be.
NEEDED = {
    "packed": ("weight_packed", "weight_scale"),
    "int8": ("weight", "weight_scale"),
    "fp8": ("weight", "weight_scale"),
    "nvfp4": ("weight_packed", "weight_scale", "weight_global_scale"),
    "modelopt-nvfp4": ("weight", "weight_scale", "weight_scale_2"),
    "gptq": ("qweight", "qzeros", "scales"),
    "awq": ("qweight", "scales"),
}
POSSIBLE = {
    "packed": ("weight_shape", "weight_zero_point", "weight_g_idx"),
    "int8": ("weight_zero_point",),
    "fp8": ("weight_zero_point",),  # written by some versions, all zero
    "gptq": ("g_idx",),
    "awq": ("qzeros",),
}
PARTS = frozenset(name for names in (*NEEDED.values(), *POSSIBLE.values()) for name in names) | {"weight_scale_inv"}
NUMBERS = {  # of the tensor with the weight's numbers
    "packed": "I32", "int8": "I8", "fp8": "F8_E4M3", "nvfp4": "U8", "modelopt-nvfp4": "U8", "gptq": "I32", "awq": "I32",
}  # fmt: skip


@dataclass(frozen=True)
class StoredModule:
    """name: the module's. tensors: by the last part of their keys. Checked by `checked_module`."""

    name: str
    scheme: Scheme
    tensors: Mapping[str, Stored]
    shape: tuple[int, int]

    @property
    def key(self) -> str:
        return self.name + ".weight"

    @property
    def file(self) -> Path:
        return next(iter(self.tensors.values())).file

    @property
    def dtype(self) -> str:
        return self.scheme.name

    @property
    def nbytes(self) -> int:
        return sum(stored.nbytes for stored in self.tensors.values())

    @cached_property
    def keys(self) -> list[str]:
        return [stored.key for stored in self.tensors.values()]

    def read(self, part: str) -> Tensor:
        return read_stored(self.tensors[part])

    def mapped(self, part: str) -> Tensor:
        return map_stored(self.tensors[part])

    def dequantized(self) -> Tensor:
        """The weight in float32 [rows, columns]. Raises CheckpointError where a scale or a number is not finite."""
        rows, columns = self.shape
        if self.scheme.bits == 4:
            return self._finite(self._four_bits().numbers() if self._order() is None else self._by_four_bits())
        numbers, scale = self._numbers(), self._scale()
        if self.scheme.strategy == "block":
            out = numbers * bits.spread_blocks(scale, rows, columns, self.scheme.block)
        else:
            group = self.scheme.group or columns
            if (zero := self._zero()) is not None:
                numbers = numbers - bits.spread(zero, columns, group)
            out = numbers * (scale if scale.ndim == 0 else self._spread(scale, group))
        return self._finite(out)

    def eight_bits(self) -> tuple[Tensor, Tensor] | None:
        """int8 [rows, columns] and float32 scales [rows] that mean exactly the stored weight; None for others."""
        scheme = self.scheme
        if scheme.bits != 8 or scheme.layout not in ("int8", "packed") or not scheme.symmetric:
            return None
        if scheme.strategy not in ("tensor", "channel"):
            return None
        numbers = self._numbers().to(torch.int8)
        return numbers, self._finite(self._scale().reshape(-1)).expand(self.shape[0]).contiguous()

    def float8(self) -> tuple[Tensor, Tensor] | None:
        """float8_e4m3fn [rows, columns] and float32 scales [rows], the stored weight; None for others."""
        scheme = self.scheme
        if scheme.layout != "fp8" or scheme.strategy not in ("tensor", "channel"):
            return None
        if (zero := self._zero()) is not None and bool(zero.any()):
            return None
        numbers = self.mapped("weight")
        self._finite(numbers.float())
        return numbers, self._finite(self._scale().reshape(-1)).expand(self.shape[0]).contiguous()

    def four_bits(self) -> Int4Matrix | None:
        """The stored numbers and scales, mapped where they lie as products take them; None for other schemes.

        None too where columns are grouped in another order (g_idx) than their own.
        """
        if self.scheme.bits != 4 or self._order() is not None:
            return None
        return self._four_bits()

    # --- the parts ----------------------------------------------------------------------------------------------

    def _four_bits(self) -> Int4Matrix:
        rows, columns = self.shape
        group, layout = self.scheme.group or columns, self.scheme.layout
        if layout in ("nvfp4", "modelopt-nvfp4"):
            packed = self.mapped("weight_packed" if layout == "nvfp4" else "weight")
            name = "weight_global_scale" if layout == "nvfp4" else "weight_scale_2"
            factor = self._finite(self.read(name)).reshape(1).float()
            if layout == "nvfp4":
                if float(factor) == 0:
                    raise CheckpointError(f"{self.file}: {self.tensors[name].key} must not be 0")
                factor = 1 / factor
            scale = self._finite(self.mapped("weight_scale"))
            return Int4Matrix(packed, scale, columns, group, None, True, factor)
        if layout == "packed":
            packed = self.mapped("weight_packed").view(torch.uint8)
            return Int4Matrix(packed, self._scales("weight_scale"), columns, group, self._packed_zero())
        if layout == "gptq":
            numbers = bits.word_nibbles_down(self.read("qweight")).T
            zeros = bits.nibbles(self.read("qzeros"), rows).T.float().contiguous() + self.scheme.zero_shift
        else:
            numbers = bits.awq_nibbles(self.read("qweight")).T
            zeros = None
            if "qzeros" in self.tensors:
                zeros = bits.awq_nibbles(self.read("qzeros")).T.float().contiguous()
        if zeros is not None and bool((zeros == 8).all()):
            zeros = None
        scale = self._finite(self.read("scales").T.contiguous())
        return Int4Matrix(bits.pack_nibbles(numbers.contiguous()), scale, columns, group, zeros)

    def _scales(self, name: str) -> Tensor:
        """Scales of groups [rows, groups], in a format that products read."""
        scale = self._finite(self.mapped(name))
        return scale.float() if scale.dtype is torch.float64 else scale.view(self.shape[0], -1)

    def _packed_zero(self) -> Tensor | None:
        if "weight_zero_point" not in self.tensors:
            return None
        rows = self.shape[0]
        return bits.nibbles(self.read("weight_zero_point").T.contiguous(), rows).T.float().contiguous()

    def _by_four_bits(self) -> Tensor:
        """Where columns are grouped in another order than their own."""
        columns, parts = self.shape[1], self._four_bits()
        values = bits.nibbles(parts.packed, columns).float()
        zero = 8.0 if parts.zero is None else self._spread(parts.zero, parts.group)
        return (values - zero) * self._spread(parts.scale.float(), parts.group)

    def _numbers(self) -> Tensor:
        if self.scheme.layout == "packed":
            return bits.octets(self.read("weight_packed"), self.shape[1]).float() - 128
        return self.read("weight").float()

    def _scale(self) -> Tensor:
        name = "weight_scale_inv" if "weight_scale_inv" in self.tensors else "weight_scale"
        scale = self.read(name).float()
        return scale.reshape(()) if scale.numel() == 1 else scale if scale.ndim == 2 else scale[:, None]

    def _zero(self) -> Tensor | None:
        if "weight_zero_point" not in self.tensors:
            return None
        zero = self.read("weight_zero_point")
        if self.scheme.layout == "packed":
            return bits.octets(zero.T.contiguous(), self.shape[0]).T.float() - 128
        zero = zero.float()
        return zero.reshape(1, 1).expand(self.shape[0], 1) if zero.numel() == 1 else zero.reshape(self.shape[0], -1)

    def _order(self) -> Tensor | None:
        """The group of every column [columns], where that is not column // group."""
        name = "g_idx" if "g_idx" in self.tensors else "weight_g_idx"
        if name not in self.tensors:
            return None
        order = self.read(name).long()
        if bool((order == -1).all()):  # what compressed-tensors writes where there is no order
            return None
        groups = -(-self.shape[1] // (self.scheme.group or self.shape[1]))
        if bool(((order < 0) | (order >= groups)).any()):
            raise CheckpointError(
                f"{self.file}: {self.tensors[name].key} must hold groups in 0 … {groups - 1}, "
                f"found {int(order.min())} … {int(order.max())}"
            )
        plain = torch.arange(self.shape[1]) // (self.scheme.group or self.shape[1])
        return None if torch.equal(order, plain) else order

    def _spread(self, scale: Tensor, group: int) -> Tensor:
        order = self._order()
        return bits.spread(scale, self.shape[1], group) if order is None else scale[:, order]

    def _finite(self, values: Tensor) -> Tensor:
        if not bits.all_finite(values):
            raise CheckpointError(
                f"{self.file}: {self.name} must hold finite numbers and scales, found NaN or infinity; "
                "get the checkpoint again"
            )
        return values


# --- checks ---------------------------------------------------------------------------------------------------------


def checked_module(name: str, scheme: Scheme, tensors: Mapping[str, Stored]) -> StoredModule:
    """A StoredModule whose tensors are those of its scheme, in number, format and shape; else a CheckpointError."""
    layout, where = scheme.layout, f"{next(iter(tensors.values())).file}: {name} ({scheme.name})"
    used = {part: stored for part, stored in tensors.items() if part not in ACTIVATION_SCALES}
    if layout == "fp8" and "weight_scale_inv" in used:
        needed: tuple[str, ...] = ("weight", "weight_scale_inv")
    else:
        needed = NEEDED[layout]
    missing = [part for part in needed if part not in used]
    if missing:
        raise CheckpointError(
            f"{where}: {', '.join(missing)} missing; quantization_config promises {', '.join(needed)}"
        )
    strange = [part for part in used if part not in needed and part not in POSSIBLE.get(layout, ())]
    if strange:
        raise CheckpointError(
            f"{where}: {', '.join(strange)} does not belong to this scheme; expected {', '.join(needed)}"
        )
    if not scheme.symmetric and layout != "awq" and "weight_zero_point" not in used:
        raise CheckpointError(f"{where}: weight_zero_point missing; quantization_config promises zero points")
    if scheme.symmetric and layout == "packed" and "weight_zero_point" in used:
        raise CheckpointError(f"{where}: weight_zero_point is there; quantization_config says symmetric")
    for part, stored in used.items():
        if 0 in stored.shape:
            raise CheckpointError(f"{where}: {part} is empty, shape {list(stored.shape)}")
    numbers = used[needed[0]]
    if numbers.dtype != NUMBERS[layout] or len(numbers.shape) != 2:
        raise CheckpointError(
            f"{where}: {needed[0]} must be a matrix of {NUMBERS[layout]}, found {numbers.dtype} {list(numbers.shape)}"
        )
    module = StoredModule(name, scheme, used, _shape(scheme, used, numbers, where))
    _check_groups(module, where)
    return module


def _shape(scheme: Scheme, tensors: Mapping[str, Stored], numbers: Stored, where: str) -> tuple[int, int]:
    rows, columns = numbers.shape
    match scheme.layout:
        case "packed":
            per_word = 32 // scheme.bits
            if "weight_shape" not in tensors:
                return rows, columns * per_word
            if tensors["weight_shape"].dtype not in ("I64", "I32") or tensors["weight_shape"].shape != (2,):
                raise CheckpointError(f"{where}: weight_shape must be two whole numbers")
            found = read_stored(tensors["weight_shape"]).tolist()
            if found[0] != rows or not 0 <= columns * per_word - found[1] < per_word:
                raise CheckpointError(
                    f"{where}: weight_shape {found} does not fit weight_packed {list(numbers.shape)} "
                    f"of {scheme.bits} bits"
                )
            return rows, found[1]
        case "nvfp4" | "modelopt-nvfp4":
            return rows, 2 * columns
        case "gptq":
            return columns, 8 * rows
        case "awq":
            return 8 * columns, rows
        case _:
            return rows, columns


def _check_groups(module: StoredModule, where: str) -> None:
    """Scales and zero points: as many as rows, groups or blocks."""
    scheme, (rows, columns) = module.scheme, module.shape
    if scheme.strategy == "group" and columns % scheme.group:
        raise CheckpointError(f"{where}: groups of {scheme.group} do not divide {columns} columns")
    groups = columns // scheme.group if scheme.strategy == "group" else 1
    words = -(-rows * scheme.bits // 32)
    per_row = [(rows, groups)] + ([(rows,)] if groups == 1 else [])
    one = [(), (1,), (1, 1)]
    if scheme.strategy == "block":
        expected = [(-(-rows // scheme.block[0]), -(-columns // scheme.block[1]))]
    elif scheme.strategy == "tensor":
        expected = [*one, (rows,), (rows, 1)]  # a matrix joined from several keeps the scale of each, by row
    else:
        expected = per_row
    allowed = {
        "weight_scale": expected,
        "weight_scale_inv": expected,
        "weight_zero_point": [(words, groups)] if scheme.layout == "packed" else [*per_row, *one],
        "weight_global_scale": one,
        "weight_scale_2": one,
        "scales": [(groups, rows)],
        "qzeros": [(groups, words)],
        "g_idx": [(columns,)],
        "weight_g_idx": [(columns,)],
    }
    whole = ("weight_zero_point", "qzeros", "g_idx", "weight_g_idx")
    for part, shapes in allowed.items():
        stored = module.tensors.get(part)
        if stored is None:
            continue
        if stored.shape not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise CheckpointError(f"{where}: {part} must have shape {wanted}, found {list(stored.shape)}")
        formats = ("I32", "I8", "U8", "I64") if part in whole else (*FLOATS, "F8_E4M3")
        if scheme.layout == "fp8" and part == "weight_zero_point":
            formats = (*formats, "F8_E4M3", *FLOATS)
        if stored.dtype not in formats:
            raise CheckpointError(f"{where}: {part} must be one of {', '.join(formats)}, found {stored.dtype}")

"""Makes Triton's CPU interpreter trustworthy for narrow floating-point formats. For tests; install before kernels run.

The interpreter (3.6 to 3.9) keeps bfloat16 as its bit pattern in a uint16, and numpy then adds, compares and multiplies
the patterns: no error, and garbage. It also truncates where the hardware rounds to nearest even, and rounds float8
otherwise than torch. Here
  - casts to and from bfloat16 and float8 are torch's,
  - `tl.dot` converts first and gives float32; its sums are taken in float64 and rounded once, since a library's sums in
    float32 depend on where in the tile a number lies and on the processor, which a tensor core's do not,
  - +, - and × of bfloat16 round once, as the hardware's instructions do,
  - `tl.dot_scaled` exists, for e2m1 numbers,
  - inline assembly is run as it is written (assembly.py), where it makes 16 bits of words,
  - a loop's bound that was read from memory is a number with any numpy,
  - `tl.maximum` and `tl.minimum` pass over what is no number, as the hardware's do,
  - everything else on bfloat16 (division, comparison, maximum, sum, exponential) raises: kernels convert first.
Private names of Triton are replaced, so its versions are pinned (pyproject.toml); it serves 3.6 and 3.7.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

from ops.triton import assembly

Handle = interpreter.TensorHandle
_builder = interpreter.InterpreterBuilder
NARROW = {tl.bfloat16: torch.bfloat16, tl.float8e4nv: torch.float8_e4m3fn, tl.float8e5: torch.float8_e5m2}


def widened(handle: Any) -> np.ndarray:
    """The numbers of a handle, narrow formats as float32."""
    narrow = NARROW.get(handle.dtype.scalar)
    if narrow is None:
        return handle.data
    bits = torch.from_numpy(np.ascontiguousarray(handle.data).view(np.int16 if narrow.itemsize == 2 else np.int8))
    return bits.view(narrow).float().numpy()


def narrowed(values: np.ndarray, kind: Any) -> Any:
    """float32 numbers as a handle of a narrow format, rounded to nearest even; float8 saturates."""
    numbers = torch.from_numpy(np.array(values, dtype=np.float32))
    if kind == tl.float8e4nv:
        numbers = numbers.clamp(-448.0, 448.0)
    rounded = numbers.to(NARROW[kind])
    pattern = rounded.view(torch.int16 if rounded.itemsize == 2 else torch.int8).numpy()
    return Handle(pattern.view(np.uint16 if rounded.itemsize == 2 else np.uint8), kind)


def e2m1(packed: np.ndarray) -> np.ndarray:
    """Bytes [n, K/2] -> numbers [n, K]; low nibble first."""
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)
    values = np.concatenate((values, -values))
    return values[np.stack((packed & 15, packed >> 4), axis=-1).reshape(packed.shape[0], -1)]


def install() -> None:
    """Replace what is wrong. Twice is once."""
    if getattr(_builder, "narrow_formats_repaired", False):
        return
    _builder.narrow_formats_repaired = True
    plain_dot, plain_binary, plain_unary = _builder.create_dot, _builder.binary_op, _builder.unary_op
    plain_cast, plain_fp_to_fp = _builder.cast_impl, _builder.create_fp_to_fp
    plain_reduce, plain_scan = interpreter.ReduceOps.apply_impl, interpreter.ScanOps.apply_impl

    def is_narrow(handle: Any) -> bool:
        return isinstance(handle, Handle) and handle.dtype.scalar in NARROW

    def refuse(operation: Any) -> None:
        name = getattr(operation, "__name__", str(operation))
        raise NotImplementedError(f"{name} on a narrow float: convert to float32 first")

    def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.matmul(a, b, dtype=np.float64).astype(np.float32)

    def dot(self: Any, a: Any, b: Any, total: Any, *rest: Any) -> Any:
        if is_narrow(a) or is_narrow(b) or a.dtype.scalar == tl.float32:
            return Handle(product(widened(a), widened(b)) + total.data, total.dtype.scalar)
        return plain_dot(self, a, b, total, *rest)

    def dot_scaled(
        self: Any, left: Any, left_scale: Any, left_format: Any, right: Any, right_scale: Any, right_format: Any,
        fast: Any, left_k: Any, right_k: Any, total: Any, *rest: Any,
    ) -> Any:  # fmt: skip
        if not left_k or not right_k:
            raise NotImplementedError("dot_scaled with operands packed along another axis than K")
        a = e2m1(left.data) * np.repeat(widened(left_scale), 16, axis=1)
        b = e2m1(right.data.T) * np.repeat(widened(right_scale), 16, axis=1)
        return Handle(product(a, b.T) + total.data, tl.float32)

    def binary(self: Any, left: Any, right: Any, operation: Any) -> Any:
        if not is_narrow(left) and not is_narrow(right):
            return plain_binary(self, left, right, operation)
        both_bf16 = left.dtype.scalar == tl.bfloat16 == right.dtype.scalar
        if operation not in (np.add, np.subtract, np.multiply) or not both_bf16:
            refuse(operation)
        return narrowed(operation(widened(left), widened(right)), tl.bfloat16)

    def unary(self: Any, argument: Any, operation: Any) -> Any:
        if is_narrow(argument):
            refuse(operation)
        return plain_unary(self, argument, operation)

    def cast(plain: Callable[..., Any]) -> Callable[..., Any]:
        def repaired(self: Any, source: Any, target: Any, *rest: Any) -> Any:
            there = target.scalar
            if is_narrow(source):
                if there == tl.float32:
                    return Handle(widened(source), there)
                if there not in NARROW:
                    refuse(f"cast to {there}")
                return narrowed(widened(source), there)
            if there in NARROW:
                if source.dtype.scalar != tl.float32:
                    refuse(f"cast from {source.dtype.scalar}")
                return narrowed(source.data, there)
            return plain(self, source, target, *rest)

        return repaired

    def guarded(plain: Callable[..., Any]) -> Callable[..., Any]:
        def repaired(self: Any, values: Any) -> Any:
            if any(is_narrow(value.handle) for value in values):
                refuse("a reduction")
            return plain(self, values)

        return repaired

    def inline_asm(self: Any, text: str, _: str, values: list[Any], kinds: list[Any], pure: bool, pack: int) -> Any:
        made = assembly.run(text, [value.data for value in values], pack)
        return SimpleNamespace(get_result=lambda number: Handle(made, tl.bfloat16))

    def bfloat16(self: Any, value: float) -> Any:
        return narrowed(np.array([value]), tl.bfloat16)

    _builder.create_dot, _builder.binary_op, _builder.unary_op = dot, binary, unary
    _builder.cast_impl, _builder.create_fp_to_fp = cast(plain_cast), cast(plain_fp_to_fp)
    _builder.create_inline_asm = inline_asm
    _builder.create_maxnumf = lambda self, left, right: self.binary_op(left, right, np.fmax)
    _builder.create_minnumf = lambda self, left, right: self.binary_op(left, right, np.fmin)
    _builder.get_bf16, _builder.create_dot_scaled = bfloat16, dot_scaled
    _builder.get_fp8e4nv = lambda self, value: narrowed(np.array([value]), tl.float8e4nv)
    plain_patch = interpreter._patch_lang
    patched: set[frozenset[str]] = set()

    def patch_once(kernel: Any) -> Any:
        """It replaces the language's functions at every call of a kernel's helper, which takes most of the time. The
        modules are always the same two, and nothing else in the process needs their old functions."""
        modules = frozenset(name for name, value in kernel.__globals__.items() if value is tl or value is tl.core)
        if modules not in patched:
            patched.add(modules)
            plain_patch(kernel)
            tl.tensor.__index__ = lambda self: self.handle.data.item()  # 3.6 makes [1] a number as numpy 2.5 does not
        return interpreter._LangPatchScope()  # which has nothing to restore

    interpreter._patch_lang = patch_once
    plain_semantic = TritonSemantic.dot_scaled

    def semantic_dot_scaled(
        self: Any, left: Any, left_scale: Any, left_format: Any, right: Any, right_scale: Any, right_format: Any,
        *rest: Any,
    ) -> Any:  # fmt: skip
        # It expects names of formats as the compiler wraps them; the interpreter hands them on as plain strings.
        names = (tl.constexpr(left_format), tl.constexpr(right_format))
        return plain_semantic(self, left, left_scale, names[0], right, right_scale, names[1], *rest)

    TritonSemantic.dot_scaled = semantic_dot_scaled
    interpreter.ReduceOps.apply_impl = guarded(plain_reduce)
    interpreter.ScanOps.apply_impl = guarded(plain_scan)

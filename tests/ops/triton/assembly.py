"""What inline assembly of kernels computes, on numpy arrays: the few PTX instructions that they use, read as text.

An instance works on `pack` neighbours at once: of whole numbers of 32 bits each has a register, of narrower results
they share one.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

Words = np.ndarray  # uint32


def _same(words: Words) -> int:
    """The one value of an operand that all instances share."""
    assert (words == words.flat[0]).all()
    return int(words.flat[0])


def _prmt(a: Words, b: Words, selector: Words) -> Words:
    """The bytes of a (0 … 3) and b (4 … 7) that the selector's nibbles name, lowest first."""
    out, chosen = np.zeros_like(a), _same(selector)
    for byte in range(4):
        number = chosen >> (4 * byte) & 15
        if number > 7:
            raise NotImplementedError("prmt with signs")
        out |= ((a if number < 4 else b) >> (8 * (number % 4)) & 255) << (8 * byte)
    return out


def _lop3(a: Words, b: Words, c: Words, table: Words) -> Words:
    """Bit by bit, what the table has at place 4a + 2b + c."""
    out, bits = np.zeros_like(a), _same(table)
    for place in range(8):
        if bits >> place & 1:
            out |= (a if place & 4 else ~a) & (b if place & 2 else ~b) & (c if place & 1 else ~c)
    return out


INSTRUCTIONS: dict[str, Callable[..., Words]] = {
    "prmt.b32": _prmt,
    "lop3.b32": _lop3,
    "and.b32": np.bitwise_and,
    "shl.b32": np.left_shift,
    "shr.b32": np.right_shift,
}


def run(text: str, inputs: list[np.ndarray], pack: int) -> np.ndarray:
    """inputs: int32, of one shape, whose last axis holds neighbours. -> uint16 of that shape.

    Raises NotImplementedError for what is not here.
    """
    if pack != 2 or any(one.dtype != np.int32 for one in inputs):
        raise NotImplementedError("assembly on other than pairs of int32")
    registers: dict[str, Words] = {}
    for number, one in enumerate(inputs):
        for place in range(pack):
            registers[f"${1 + number * pack + place}"] = np.ascontiguousarray(one.view(np.uint32)[..., place::pack])
    like = registers["$1"]

    def operand(name: str) -> Words:
        return registers[name] if name in registers else np.full_like(like, int(name, 0))

    for line in text.strip().strip("{}").split(";"):
        words = [word for word in re.split(r"[\s,]+", line) if word]
        if not words or words[0] == ".reg":
            continue
        if words[0] not in INSTRUCTIONS:
            raise NotImplementedError(f"{words[0]} in inline assembly")
        registers[words[1]] = INSTRUCTIONS[words[0]](*map(operand, words[2:]))
    out = registers["$0"]
    return np.stack((out & 0xFFFF, out >> 16), axis=-1).astype(np.uint16).reshape(inputs[0].shape)

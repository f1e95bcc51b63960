"""The reader of inline assembly, against what the instructions are documented to do."""

from __future__ import annotations

import numpy as np
import pytest

from ops.triton import assembly


def computed(text: str, *inputs: int) -> int:
    """Of two neighbours, equal in all inputs but the first, whose second is 0x89ABCDEF; both results in one word."""
    first = np.array([[inputs[0], 0x89ABCDEF]], dtype=np.uint32).view(np.int32)
    others = [np.full_like(first, one) for one in inputs[1:]]
    low, high = assembly.run(text, [first, *others], 2)[0].tolist()
    return low | high << 16


def test_instructions() -> None:
    assert computed("{ prmt.b32 $0, $1, $2, 0x5410; }", 0x01234567) == 0xCDEF4567
    assert computed("{ prmt.b32 $0, $1, $2, $3; }", 0x01234567, 0x7632) == 0x89AB0123
    assert computed("{ shr.b32 $0, $2, 4; }", 0) == 0x089ABCDE  # no sign comes in
    assert computed("{ .reg .b32 t; shl.b32 t, $1, 8; and.b32 $0, t, 0x0FFFFFFF; }", 0x01234567) == 0x03456700
    assert computed("{ lop3.b32 $0, $1, 0x0F0F0F0F, 0x40004000, 0xEA; }", 0x01234567) == 0x41034507


@pytest.mark.parametrize("text", ["mul.lo.u32 $0, $1, $2;", "prmt.b32 $0, $1, $2, 0xBA98;"])
def test_what_it_does_not_know_it_refuses(text: str) -> None:
    with pytest.raises(NotImplementedError):
        computed(text, 1)

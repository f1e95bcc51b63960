"""Keys and values in eight bits: each token and head has a scale of its own, so a token's numbers are the same whatever
is encoded with it.

"int8": whole numbers -127 … 127; "fp8": e4m3, ± 448. Scales have the model's dtype. Attention reads neither: what it
may see is made whole again, a layer at a time, in memory that a forward owns.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from scumble.config import LayerConfig
from scumble.errors import InvalidRequest, shown
from scumble.ops import Ops

CacheFormat = Literal["int8", "fp8"]
STORED: dict[str, torch.dtype] = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
SHIFTS = {torch.bfloat16: (torch.int16, 4), torch.float32: (torch.int32, 20)}  # of e4m3 into them, as whole numbers
MOST = {"int8": 127.0, "fp8": 448.0}


def cache_format(name: str | None, ops: Ops) -> CacheFormat | None:
    """The number format of a cache by its name; None: that of the model. Raises InvalidRequest."""
    if name is None:
        return None
    if name not in STORED:
        raise InvalidRequest(f"cache_dtype must be None or one of {', '.join(STORED)}; found {shown(name)}")
    if ops.attends_pages:
        raise InvalidRequest(
            f"cache_dtype={name!r}: the operations {ops.name!r} keep keys and values in pages of the model's dtype; "
            "leave cache_dtype out, or load with ops='reference'"
        )
    return "int8" if name == "int8" else "fp8"


def token_bytes(layer: LayerConfig, number: int, form: CacheFormat | None = None) -> int:
    """Of a token's keys and values in one layer. number: bytes of a number of the model's dtype."""
    each = layer.head_dim * number if form is None else layer.head_dim + number
    return 2 * layer.num_key_value_heads * each


def rounded(x: Tensor, form: CacheFormat) -> tuple[Tensor, Tensor]:
    """x [..., K] -> eight-bit numbers [..., K], scales [..., 1] in x's dtype. NaN and infinity make the scale NaN or
    infinite, so they are still found in what is read back."""
    exact, tiny = x.float(), torch.finfo(x.dtype).tiny
    scales = (exact.abs().amax(-1, keepdim=True) / MOST[form]).clamp_min_(tiny).to(x.dtype)
    exact = exact / scales.float()
    whole = exact.round_() if form == "int8" else exact
    return whole.clamp_(-MOST[form], MOST[form]).to(STORED[form]), scales


def make_whole(out: Tensor, numbers: Tensor, scales: Tensor, form: CacheFormat) -> None:
    """Into `out`, in the dtype of the scales, what `rounded` made numbers of."""
    if form == "int8" or out.dtype not in SHIFTS:
        out.copy_(numbers).mul_(scales)
        return
    # torch converts e4m3 number by number. Its bits, moved to where a wider format has sign, exponent and mantissa, are
    # the same number times 2^-120, because both count exponents from another zero.
    whole, shift = SHIFTS[out.dtype]
    bits = out.view(whole)
    bits.copy_(numbers.view(torch.int8)).bitwise_left_shift_(shift).bitwise_and_(~(0x780 << shift))
    out.mul_(2.0**120).mul_(scales)


class Room:
    """Memory for one layer's keys and values as attention reads them: what was taken before is overwritten."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def take(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        count = math.prod(shape)
        if self._memory is None or self._memory.numel() < count or self._memory.dtype != dtype:
            self._memory = None  # before the next one is made
            self._memory = torch.empty(count, dtype=dtype, device=device)
        return self._memory[:count].view(shape)

"""Where a model runs, and in which number format: what the words that people give for it mean."""

from __future__ import annotations

import torch

from scumble.errors import InvalidRequest, shown
from scumble.formats import Format
from scumble.ops import choose
from scumble.ops.quick import multiplies_bfloat16

DTYPES: dict[str, torch.dtype | Format] = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "int8": "int8", "int4": "int4", "fp8": "fp8",
    "nvfp4": "nvfp4",
}  # fmt: skip


def choose_device(device: str | torch.device) -> torch.device:
    """A device that is there; "auto": the GPU, when there is one. Raises InvalidRequest."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError, TypeError) as error:
        # Of another kind of device torch lists all that it has ever heard of; of CUDA it knows what is missing.
        reason = f": {str(error).splitlines()[0]}" if str(device).partition(":")[0] == "cuda" else ""
        raise InvalidRequest(
            f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', and present; found {shown(device)}{reason}"
        ) from None
    return where


def named_dtype(dtype: torch.dtype | str | None) -> torch.dtype | Format | None:
    """A number format by its name or as torch has it; None keeps what is stored. Raises InvalidRequest."""
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1:
        return dtype
    if dtype is None or (isinstance(dtype, str) and dtype in DTYPES):
        return None if dtype is None else DTYPES[dtype]
    raise InvalidRequest(
        f"dtype must be None, a floating torch.dtype or one of {', '.join(DTYPES)}; found {shown(dtype)}"
    )


def choose_dtype(dtype: str | torch.dtype, device: torch.device, ops: str | None = None) -> torch.dtype | Format | None:
    """The dtype to convert to; None keeps what is stored. ops: as of `ops.choose`. Raises InvalidRequest.

    "auto" on a CPU: as stored where bfloat16 is quick there, with the native kernels or in torch; else float32.
    """
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if dtype == "auto":
        quick = multiplies_bfloat16(device) or choose(device, torch.bfloat16, name=ops).ops.packs
        return None if quick else torch.float32
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InvalidRequest(f"dtype must be one of auto, {', '.join(DTYPES)}; found {shown(dtype)}")
    return DTYPES[dtype]

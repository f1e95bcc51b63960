"""Tied weights that a file holds more than once: the copies must be equal, or the file is another model.

The encoder's text weights and `lm_head` are the decoder's, so most files store them once. A fine-tune may store copies
that differ; `transformers` then keeps both. Scumble has one of each, so it refuses such a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from scumble.checkpoint.files import Stored, pieces
from scumble.checkpoint.names import candidates
from scumble.checkpoint.schemes import Entry, read_entry
from scumble.errors import CheckpointError


def find_copies(plan: Mapping[str, Entry], tensors: Mapping[str, Entry]) -> list[tuple[Entry, Entry]]:
    """(the tensor that is loaded, a copy of it), for every tied copy that the files hold."""
    return [
        (used, tensors[key])
        for name, used in plan.items()
        for key in candidates(name)
        if key in tensors and key != used.key
    ]


def check_copies(copies: list[tuple[Entry, Entry]], dtype: torch.dtype, folder: Path) -> None:
    """Raises CheckpointError, naming them, where copies differ in shape, or in value once both are in `dtype`.

    Reads both through small buffers, so that no more than a few megabytes are held.
    """
    differing = [(used, copy) for used, copy in copies if not _equal(used, copy, dtype)]
    if differing:
        used, copy = differing[0]
        more = f" (and {len(differing) - 1} more pairs)" if len(differing) > 1 else ""
        raise CheckpointError(
            f"{folder}: {copy.key} must equal {used.key}, to which it is tied, and differs{more}; Scumble runs tied "
            "weights only: leave the copies out of the file where they should be the same"
        )


def _equal(used: Entry, copy: Entry, dtype: torch.dtype) -> bool:
    if used.shape != copy.shape:
        return False
    if not isinstance(used, Stored) or not isinstance(copy, Stored):
        device = torch.device("cpu")
        return torch.equal(read_entry(used, dtype, device), read_entry(copy, dtype, device))
    same_format = used.dtype == copy.dtype
    for one, other in zip(pieces(used), pieces(copy), strict=True):
        if same_format and torch.equal(one.view(torch.uint8), other.view(torch.uint8)):  # NaN equals itself here
            continue
        if not torch.equal(one.to(dtype), other.to(dtype)):
            return False
    return True

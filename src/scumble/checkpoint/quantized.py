"""Whether a checkpoint's weights are quantized, by what its JSON files say and by what its tensors look like.

Quantized weights are numbers without a meaning until their scales are applied: read as they are, they make a model that
writes nonsense. `schemes/` reads the schemes that Scumble knows; another one is refused by its name, before anything
else is looked at, and a tensor that looks like a part of one is never ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scumble.checkpoint.files import DTYPES, Stored
from scumble.checkpoint.names import DECODER, ENCODER, VISION
from scumble.config import read_json
from scumble.errors import CheckpointError, shown
from scumble.reading import is_there

MODELOPT = "hf_quant_config.json"

# The last parts of keys that hold a weight's scale, offset or packed numbers, as the known packages name them.
PARTS = re.compile(
    r"(^|[._])(scales?|scale_inv|scale_\d|global_scale|input_scale|zero_?points?|zeros?|qzeros|qweight|packed|shape|"
    r"g_idx|q?data|w_q|absmax|quant_map|quant_state|bitsandbytes__\w+|nested_\w+|scb|codebooks?|codes|biases|blocks|amax|zp)$",
    re.IGNORECASE,
)
# Keys that change what a known layer computes: an adapter that was not merged, a bias where the model has none.
CHANGES = re.compile(r"(^|\.)(lora_\w+|bias|magnitude_vector)(\.|$)")


@dataclass(frozen=True)
class Scheme:
    """How a folder says that its weights are quantized.

    name: for people. file: which one says it. settings: what it says.
    """

    name: str
    file: Path
    settings: dict[str, Any]


def declared_scheme(folder: Path, config: dict[str, Any]) -> Scheme | None:
    """The scheme that config.json (its object) or hf_quant_config.json declares; None: plain weights."""
    text = config.get("text_config")
    for source in (config, text if isinstance(text, dict) else {}):
        for field in ("quantization_config", "compression_config", "quantization"):
            settings = source.get(field)
            if settings:
                if not isinstance(settings, dict):
                    raise CheckpointError(
                        f"{folder / 'config.json'}: {field} must be an object, found {shown(settings)}"
                    )
                return Scheme(_name(settings, field), folder / "config.json", settings)
    if is_there(folder / MODELOPT):
        settings = read_json(folder / MODELOPT)
        inner = settings.get("quantization")
        return Scheme(_name({"quant_method": "modelopt", **(inner if isinstance(inner, dict) else {})}, MODELOPT),
                      folder / MODELOPT, settings)  # fmt: skip
    return None


def _name(settings: dict[str, Any], field: str) -> str:
    """The scheme in words: method, then format or algorithm, then bits and group size, as far as they are said."""
    words = [str(settings[key]) for key in ("quant_method", "format", "quant_algo") if settings.get(key)]
    if field == "quantization" and not words:
        words = ["MLX"]
    numbers = [f"{key} {settings[key]}" for key in ("bits", "group_size") if settings.get(key)]
    return shown(", ".join(words + numbers) or field).strip("'\"")


def refuse_parts(tensors: Iterable[Stored], known: set[str]) -> None:
    """Raises CheckpointError for tensors beside the known ones that change what the known ones mean: scales, offsets,
    packed numbers, and adapters or biases of the text model. The vision tower, which is not read, may have all of them.
    """
    others = [one for one in tensors if one.key not in known and not one.key.startswith(VISION)]
    parts = [one for one in others if PARTS.search(one.key) or (_is_text(one) and one.dtype not in DTYPES)]
    if parts:
        raise CheckpointError(
            f"{parts[0].file}: looks quantized, but no file of the folder says how: found {_listed(parts)}; "
            "get the checkpoint in bfloat16"
        )
    changes = [one for one in others if _is_text(one) and CHANGES.search(one.key)]
    if changes:
        raise CheckpointError(
            f"{changes[0].file}: found {_listed(changes)}, which would change what the model computes, and for which "
            "Scumble has no place; merge it into the weights first"
        )


def _is_text(tensor: Stored) -> bool:
    return tensor.key.startswith((DECODER, ENCODER, "lm_head."))


def _listed(tensors: list[Stored]) -> str:
    tensors = sorted(tensors, key=lambda one: one.key)
    more = f" and {len(tensors) - 3:,} more" if len(tensors) > 3 else ""
    return ", ".join(f"{shown(one.key)} ({one.dtype})" for one in tensors[:3]) + more

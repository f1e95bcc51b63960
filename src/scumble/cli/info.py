"""`scumble info`: what a checkpoint is, from its config and the headers of its files. No weights are read."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scumble.cli.terminal import error_console, spinner, uninterrupted
from scumble.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from scumble.checkpoint.files import Stored
    from scumble.checkpoint.load import Contents
    from scumble.config import ModelConfig
    from scumble.model.rounding import CacheFormat
    from scumble.ops import Choice

EPILOG = """\
Examples:

  scumble info

  scumble info path/to/checkpoint --json
"""

# By --cache-dtype, or the model's dtype: bytes of a number, or of a scale in eight bits (weights in few bits leave the
# model in bfloat16).
CACHES: dict[str, tuple[int, CacheFormat | None]] = {
    "float32": (4, None), "bfloat16": (2, None), "int8": (2, "int8"), "fp8": (2, "fp8"),
}  # fmt: skip
CONTEXT_UNIT = 1000  # tokens of context for which the KV cache is stated


def info(
    path: Annotated[Path | None, typer.Argument(help="Checkpoint folder; the embedded model when left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show a checkpoint's architecture, parameters and memory, without loading it."""
    with spinner(error_console(), "reading the headers"):
        facts = gather(path)
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    from scumble.cli.info_table import print_facts

    print_facts(facts)


def gather(path: Path | None) -> dict[str, Any]:
    """Everything `info` knows about a folder, as JSON values. Sizes in bytes."""
    with uninterrupted():
        from scumble.checkpoint import read_contents, read_generation_config
        from scumble.checkpoint.files import as_folder
        from scumble.checkpoint.memory import available, needed
        from scumble.formats.sizes import FORMATS, PLAIN_BYTES, weight_bytes
        from scumble.llm import embedded_path
        from scumble.placement import choose_device

    if path is None and not embedded_path().is_dir():
        raise CheckpointError("this installation has no embedded model; name a checkpoint folder: scumble info PATH")
    folder = embedded_path() if path is None else as_folder(path)
    found = read_contents(folder)
    tensors, config, shapes = found.tensors, found.config, found.shapes
    device = choose_device("auto")
    room, choice = available(device), operations(found, device)
    on_card = device.type != "cpu"
    forms = (*PLAIN_BYTES, *sorted(choice.ops.formats)) if on_card else FORMATS
    return {
        "path": str(folder),
        "architecture": architecture(config),
        "generation": read_generation_config(folder),
        "parameters": parameters(config, shapes),
        "memory": {name: weight_bytes(shapes, name, on_card) for name in forms},
        "fits": {
            name: room is None or needed(config, shapes, name, on_card, choice.ops.packs) <= room.bytes
            for name in forms
        },
        "memory_available": None if room is None else {"bytes": room.bytes, "limit": room.limit},
        "kv_cache": {name: kv_cache(config, *how) for name, how in CACHES.items()},
        "files": stored(tensors),
        "parts": parts(found),
        "loads_as": (loaded := loads_as(found, device)),
        "cache_room": None if room is None else cache_room(config, loaded["format"], room.bytes - loaded["needed"]),
        "left_out": left_out(tensors),
        "operations": {
            "name": choice.ops.name,
            "variant": choice.ops.variant,
            "asked_for": choice.forced,
            "passed_over": choice.passed_over,
            "batch_invariant": choice.ops.batch_invariant,
        },
        **text_side(folder),
    }


def loads_as(found: Contents, device: torch.device) -> dict[str, Any]:
    """The number format that `LLM.load` gives the model there by itself, the memory that takes while it is loaded, and
    whether there is as much (None: the system does not say)."""
    from scumble.checkpoint.keep import is_in_few_bits
    from scumble.checkpoint.load import form_of, main_dtype
    from scumble.checkpoint.memory import available, needed, needed_as_stored
    from scumble.placement import choose_dtype

    chosen, on_card = choose_dtype("auto", device), device.type != "cpu"
    in_few_bits = any(is_in_few_bits(entry) for entry in found.plan.values())
    form = str(main_dtype(found.plan) if chosen is None else chosen).removeprefix("torch.")
    if in_few_bits:
        form = form_of(found.plan)
    if in_few_bits and not on_card:
        wanted = needed_as_stored(found.config, found.plan)
    else:
        wanted = needed(found.config, found.shapes, form, on_card, operations(found, device).ops.packs)
    room = available(device)
    return {"format": form, "needed": wanted, "fits": None if room is None else wanted <= room.bytes}


def cache_room(config: ModelConfig, form: str, left: int) -> dict[str, int]:
    """What an engine takes for caches of what loading leaves, and how long a context of one request that holds."""
    import torch

    from scumble.engine.memory import SHARE, longest_context

    memory = int(max(0, left) * SHARE)
    dtype = torch.float32 if form == "float32" else torch.bfloat16
    return {"bytes": memory, "tokens": longest_context(config, dtype, memory)}


PARTS = {
    ".self_attn.": "attention", ".mlp.": "dense MLP", ".experts.": "experts", ".router.": "router",
    "self_conditioning": "self-conditioning", "embed_tokens": "embedding, head",
}  # fmt: skip


def parts(found: Contents) -> list[dict[str, Any]]:
    """How each part of the model is stored: bytes, and what in, the format of most bytes first."""
    sizes: dict[str, Counter[str]] = defaultdict(Counter)
    for name, entry in found.plan.items():
        part = next((part for piece, part in PARTS.items() if piece in name and "norm" not in name), "norms, scalars")
        sizes[part][entry.dtype] += entry.nbytes
    return [
        {"part": part, "bytes": counts.total(), "stored_as": [name for name, _ in counts.most_common()]}
        for part, counts in sorted(sizes.items(), key=lambda pair: -pair[1].total())
    ]


def operations(found: Contents, device: torch.device) -> Choice:
    """Which operations would serve the model there, loaded as by default; and why not quicker ones."""
    from scumble.checkpoint.load import main_dtype
    from scumble.ops import choose
    from scumble.placement import choose_dtype

    dtype = choose_dtype("auto", device)
    return choose(device, main_dtype(found.plan) if dtype is None or isinstance(dtype, str) else dtype, found.config)


def text_side(folder: Path) -> dict[str, Any]:
    """tokens: of the tokenizer, None without one. chat_template: "own", "built-in" (needs turn markers) or None."""
    from scumble.checkpoint.text import read_template, read_tokenizer
    from scumble.errors import TemplateError

    tokenizer = read_tokenizer(folder)
    if tokenizer is None:
        return {"tokenizer_tokens": None, "chat_template": None}
    try:
        template = "built-in" if read_template(folder, tokenizer).is_built_in else "own"
    except TemplateError:
        template = None
    return {"tokenizer_tokens": tokenizer.vocab_size, "chat_template": template}


def architecture(config: ModelConfig) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {}
    for layer in config.layers:
        name = "sliding" if layer.is_sliding else "full"
        key = f"{name}, {layer.num_key_value_heads} KV heads of {layer.head_dim}"
        kind = kinds.setdefault(
            key, {"kind": name, "layers": 0, "key_value_heads": layer.num_key_value_heads, "head_dim": layer.head_dim}
        )
        kind["layers"] += 1
    return {
        "layers": len(config.layers),
        "layer_kinds": list(kinds.values()),
        "sliding_window": config.sliding_window,
        "hidden_size": config.hidden_size,
        "query_heads": config.num_attention_heads,
        "dense_width": config.intermediate_size,
        "experts": config.num_experts,
        "experts_per_token": config.top_k_experts,
        "expert_width": config.moe_intermediate_size,
        "vocabulary": config.vocab_size,
        "context": config.max_position_embeddings,
        "canvas_length": config.canvas_length,
        "eos_token_ids": list(config.eos_token_ids),
    }


def parameters(config: ModelConfig, shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """total: all weights of the text model. active: those that one token uses in one denoising pass, that is all but
    the experts that its router does not choose. The embedding counts once in both: it is also the output head, which
    reads all of it."""
    total = sum(_count(shape) for shape in shapes.values())
    experts = sum(_count(shape) for name, shape in shapes.items() if ".experts." in name)
    idle = experts * (config.num_experts - config.top_k_experts) // config.num_experts
    return {
        "total": total,
        "active": total - idle,
        "experts": experts,
        "embedding": _count(shapes["embed_tokens.weight"]),
    }


def kv_cache(config: ModelConfig, number: int, form: CacheFormat | None) -> dict[str, int]:
    """Bytes of keys and values. Full layers grow with the context; sliding ones stop at their window."""
    from scumble.checkpoint.memory import kv_bytes

    sliding = [layer for layer in config.layers if layer.is_sliding]
    full = [layer for layer in config.layers if not layer.is_sliding]
    return {
        "full_layers_per_1000_tokens": kv_bytes(config, CONTEXT_UNIT, number, form, full),
        "sliding_layers_at_most": kv_bytes(config, config.sliding_window, number, form, sliding),
        "at_1000_tokens": kv_bytes(config, CONTEXT_UNIT, number, form),
        "at_full_context": kv_bytes(config, config.max_position_embeddings, number, form),
    }


def stored(tensors: dict[str, Stored]) -> dict[str, Any]:
    formats: dict[str, int] = {}
    for tensor in tensors.values():
        formats[tensor.dtype] = formats.get(tensor.dtype, 0) + tensor.nbytes
    return {
        "count": len({tensor.file for tensor in tensors.values()}),
        "tensors": len(tensors),
        "bytes": sum(formats.values()),
        "bytes_by_format": formats,
    }


def left_out(tensors: dict[str, Stored]) -> dict[str, int]:
    """What a text-only load does not read: the vision tower."""
    from scumble.checkpoint.names import VISION

    vision = [tensor for key, tensor in tensors.items() if key.startswith(VISION)]
    return {"vision_tensors": len(vision), "vision_bytes": sum(tensor.nbytes for tensor in vision)}


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count

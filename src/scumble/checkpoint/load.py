"""Load a DiffusionGemma checkpoint: the text model only, from safetensors or GGUF only, one tensor at a time."""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scumble.checkpoint.copies import check_copies, find_copies
from scumble.checkpoint.files import DTYPES, Stored, as_folder, check_folder, find_tensors, read_mapped
from scumble.checkpoint.gguf.blocks import BY_NAME
from scumble.checkpoint.gguf.model import config_json, generation_json, is_gguf, weight_entries
from scumble.checkpoint.gguf.reader import read_gguf
from scumble.checkpoint.keep import CPU, Keeper, in_four_bits, is_in_few_bits
from scumble.checkpoint.memory import check_memory, no_room_in_words
from scumble.checkpoint.names import VISION, candidates
from scumble.checkpoint.pages import give_back, let_go
from scumble.checkpoint.quantized import declared_scheme, refuse_parts
from scumble.checkpoint.raw import map_stored
from scumble.checkpoint.schemes import Assembled, Entry, assemble, parse_quantization, read_entry, scheme_counts
from scumble.checkpoint.schemes.module import CACHE_SCALES
from scumble.config import ModelConfig, parse_model_config, read_json
from scumble.errors import CheckpointError, InvalidRequest, shown
from scumble.formats import Format, build
from scumble.model import Transformer, weight_shapes
from scumble.model.load_report import LoadReport
from scumble.model.rounding import cache_format
from scumble.ops import choose
from scumble.placement import choose_device, named_dtype
from scumble.reading import is_there
from scumble.settings import RELEASE_DEFAULTS, SETTINGS, GenerationConfig

log = logging.getLogger("scumble")


def load_config(path: str | Path) -> ModelConfig:
    """The ModelConfig of a checkpoint folder or GGUF file, without its weights. Errors name the file at fault."""
    if is_gguf(Path(path)):
        try:
            return parse_model_config(config_json(read_gguf(Path(path))))
        except CheckpointError as error:
            raise CheckpointError(str(error).replace("config.json", f"{path}, metadata", 1)) from None
    check_folder(Path(path))
    file, generation = Path(path) / "config.json", Path(path) / "generation_config.json"
    raw, eos = read_json(file), None
    if is_there(generation):  # it decides how answers end, as in `transformers`; the release keeps its list there
        eos = read_json(generation).get("eos_token_id")
        if eos is not None:
            raw = {**raw, "eos_token_id": eos}
    try:
        return parse_model_config(raw)
    except CheckpointError as error:  # knows the file's name, not its folder
        what = str(error).removeprefix("config.json")
        at_fault = generation if eos is not None and what.startswith(": eos_token_id") else file
        raise CheckpointError(f"{at_fault}{what}") from None


def read_generation_config(folder: Path) -> dict[str, Any]:
    """Settings stored in a folder's `generation_config.json`, by the names of GenerationConfig; nulls are unset.

    Raises CheckpointError, with the file, for values out of range, beyond the model's canvas, or at odds with the
    release's values for what is unset.
    """
    if is_gguf(folder):
        path, raw = folder, generation_json(read_gguf(folder))
    else:
        path = folder / "generation_config.json"
        if not is_there(path):
            return {}
        raw = read_json(path)
    out = {}
    for name, row in SETTINGS.items():
        *groups, last = row.stored or ("",)
        holder: Any = raw
        for group in groups:
            holder = {} if holder.get(group) is None else holder[group]
            if not isinstance(holder, dict):
                raise CheckpointError(f"{path}: {group} must be an object, found {shown(holder)}")
        if holder.get(last) is not None:
            out[name] = holder[last]
    try:
        GenerationConfig(**{**RELEASE_DEFAULTS, **out})
    except InvalidRequest as error:  # the file's fault, not the caller's
        raise CheckpointError(f"{path}: {error}") from None
    length = out.get("canvas_length")
    if isinstance(length, int) and length > (longest := load_config(folder).canvas_length):
        raise CheckpointError(f"{path}: canvas_length must lie in 1 … {longest} for this model, found {length}")
    return out


@dataclass(frozen=True)
class Contents:
    """What a checkpoint folder holds, by its config and the headers of its files; no weight has been read.

    tensors: as the files have them. found: the same, with quantized modules and un-fused experts put together.
    shapes: of every weight of the model, by its name in the model. plan: which entry serves it.
    assumed: weights that the files lack and that another one's tensor serves. copies: (served, its tied copy).
    """

    config: ModelConfig
    tensors: dict[str, Stored]
    found: Assembled
    shapes: dict[str, tuple[int, ...]]
    plan: dict[str, Entry]
    assumed: tuple[str, ...]
    copies: list[tuple[Entry, Entry]]

    def report(self, weight_bytes: int) -> LoadReport:
        named = {stored.key for stored in self.plan.values()} | {copy.key for _, copy in self.copies}
        others = [key for key in self.found.entries if key not in named and not key.startswith(VISION)]
        cache_scales = sum(key.rpartition(".")[2] in CACHE_SCALES for key in self.found.unused)
        vision = [stored for stored in self.tensors.values() if stored.key.startswith(VISION)]
        return LoadReport(
            weight_bytes=weight_bytes,
            vision_tensors=len(vision),
            vision_bytes=sum(stored.nbytes for stored in vision),
            tied_copies=len(self.copies),
            unknown=tuple(sorted(others)),
            assumed=self.assumed,
            schemes=scheme_counts(self.plan.values()),
            unused_scales=len(self.found.unused) - cache_scales,
            cache_scales=cache_scales,
        )


def read_contents(folder: Path) -> Contents:
    """Check a folder as far as that goes without reading weights. Raises CheckpointError where loading would."""
    config = load_config(folder)
    if is_gguf(folder):
        gguf = read_gguf(folder)
        tensors, found = gguf.tensors, Assembled(weight_entries(gguf))
    else:
        scheme = declared_scheme(folder, config.source)
        quantization = None if scheme is None else parse_quantization(scheme)
        tensors = find_tensors(folder)
        found = assemble(tensors, quantization)
    shapes = weight_shapes(config)
    plain = [entry for entry in found.entries.values() if isinstance(entry, Stored)]
    if not is_gguf(folder):
        refuse_parts(plain, {key for name in shapes for key in candidates(name)})
    plan, assumed = _plan(shapes, found.entries, folder)
    copies = find_copies(plan, found.entries)
    for name in assumed:
        plan[name] = plan[name.replace("encode_layer_scalar", "layer_scalar")]
    return Contents(config, tensors, found, shapes, plan, tuple(assumed), copies)


def load_checkpoint(
    path: str | Path,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    ops: str | None = None,
    cache_dtype: str | None = None,
) -> Transformer:
    """The model in a released-format folder, in `dtype` (None: as stored), ready for inference.

    dtype: a floating torch.dtype, or "float32", "bfloat16", "int8", "int4", "fp8" or "nvfp4" by name; None: as stored.
    Weights that need no conversion stay memory-mapped: their pages are the only copy. Others are converted piece by
    piece. A file of several formats becomes the one that most of its bytes have, unless dtype says otherwise.
    dtype "int8", "int4", "fp8", "nvfp4": bfloat16, then linear layers and experts in that format (see formats/); the
    last two run on graphics cards that have them.
    ops: which operations serve, by name; None: the quickest that can, or what SCUMBLE_OPS names (see ops/choose.py).
    cache_dtype: "int8" or "fp8": keys and values in eight bits; None: in the model's dtype.
    Raises CheckpointError, with the key, what was expected and what was found; also where the memory does not suffice
    (SCUMBLE_MEMORY_CHECK=0 in the environment: try all the same).
    The result has `.config` (ModelConfig), `.load_report` (LoadReport) and `.ops` (what serves).
    """
    folder, dtype, device = as_folder(path), named_dtype(dtype), choose_device(device)
    found = read_contents(folder)
    plan = found.plan
    whole = torch.bfloat16 if isinstance(dtype, str) else dtype or main_dtype(plan)
    in_few_bits = dtype is None and any(map(is_in_few_bits, plan.values()))
    choice = choose(device, torch.bfloat16 if in_few_bits else whole, found.config, ops)
    cache = cache_format(cache_dtype, choice.ops)
    as_stored = in_few_bits and (device.type == "cpu" or bool(choice.ops.formats))
    if as_stored:
        whole = torch.bfloat16
    form = form_of(plan) if as_stored else dtype if isinstance(dtype, str) else None
    if not as_stored:
        build.check(form, choice.ops, device)
    stored = plan if as_stored else None
    check_memory(found.config, found.shapes, form or whole, device, folder, choice.ops, stored, cache)
    check_copies(found.copies, whole, folder)
    with torch.device("meta"):
        model = Transformer(found.config)
    log.info("%s: %s", folder.name, choice.line())
    model.use(choice.ops)
    model.cache_format = cache
    runs_as: Counter[str] = Counter()
    with no_room_in_words(folder, device):
        if form is not None or choice.ops.packs:
            runs_as = _load_converted(model, plan, form, whole, device, as_stored)
            kept_bytes = model.nbytes
        else:
            weights = _read(plan, whole, device)
            kept_bytes = sum(tensor.nbytes for tensor in weights.values())
            model.load_state_dict(weights, assign=True)
    model.eval().requires_grad_(False)
    model.load_report = replace(found.report(kept_bytes), runs_as=tuple(f"{n} × {how}" for how, n in runs_as.items()))
    for line in model.load_report.lines():
        log.info("%s: %s", folder.name, line)
    return model


def form_of(plan: Mapping[str, Entry]) -> Format:
    """The format that a model's weights run in where they stay as they are stored: of most bytes in few bits."""
    narrow = [entry for entry in plan.values() if is_in_few_bits(entry)]
    four = sum(entry.nbytes for entry in narrow if in_four_bits(entry))
    return "int4" if 2 * four >= sum(entry.nbytes for entry in narrow) else "int8"


@torch.no_grad()
def _load_converted(
    model: Transformer,
    plan: dict[str, Entry],
    form: Format | None,
    dtype: torch.dtype,
    device: torch.device,
    as_stored: bool,
) -> Counter[str]:
    """Read and convert layer by layer, so that no more than one layer is there twice. What is stored in few bits is
    kept where `form` can hold it; as_stored: whatever it is, and what is stored in float stays float.

    Returns how many modules are stored in what and run as what.
    """
    seen: Counter[str] = Counter()
    keeper = Keeper(model.ops, device, None if as_stored else form, seen)
    parts: dict[str, list[str]] = defaultdict(list)
    for name in plan:
        parts[".".join(name.split(".")[:2]) if name.startswith("layers.") else ""].append(name)
    for prefix, names in sorted(parts.items(), reverse=True):  # what is outside the layers comes last
        part: nn.Module = model.get_submodule(prefix) if prefix else model
        if as_stored:
            load_part(model, prefix, {name: plan[name] for name in names}, dtype, device, keeper)
            if prefix:
                model.convert(None, part)
            else:
                build.add_head(model.embed_tokens, form)
                model.quantized = form
            give_back()
            continue
        if form is not None:
            kept = _keep(model, prefix, plan, keeper)
            names = [name for name in names if name not in kept]
        read = {name: read_entry(plan[name], dtype, device) for name in names}
        for name, weight in read.items():  # rounding would hide it from the engine, which finds it in float formats
            if form is not None and not math.isfinite(float(weight.sum())):
                raise CheckpointError(
                    f"{plan[name].file}: {plan[name].key} must hold finite numbers, found NaN or infinity; "
                    "get or save the checkpoint again"
                )
        model.load_state_dict(read, strict=False, assign=True)
        del read
        model.convert(form, part)
        give_back()
    if model.embed_tokens.head is not None:  # it has copies of its own; of the table only some rows are wanted
        let_go(model.embed_tokens.weight)
    return seen


@torch.no_grad()
def load_part(
    model: Transformer, prefix: str, plan: Mapping[str, Entry], dtype: torch.dtype,
    device: torch.device = CPU, keeper: Keeper | None = None,
) -> None:  # fmt: skip
    """Weights of one layer ("layers.3"), or of what is outside the layers (""); `plan` has them all.

    In `dtype`, as parameters, mapped where the file holds that. keeper: what is in few bits is kept so, by it.
    """
    kept = set() if keeper is None else _keep(model, prefix, plan, keeper)
    own = {name: entry for name, entry in plan.items() if name not in kept}
    model.load_state_dict(_read(own, dtype, device), strict=False, assign=True)


def _keep(model: Transformer, prefix: str, plan: Mapping[str, Entry], keeper: Keeper) -> set[str]:
    """Put what is in few bits into a layer, or into self-conditioning; returns the names of the weights that served."""
    path = (prefix or "self_conditioning") + "."
    inside = {name.removeprefix(path): entry for name, entry in plan.items() if name.startswith(path)}
    return {path + name for name in keeper.keep(model.get_submodule(path[:-1]), inside)}


def _plan(
    wanted: dict[str, tuple[int, ...]], tensors: dict[str, Entry], folder: Path
) -> tuple[dict[str, Entry], list[str]]:
    """Which stored tensor serves which weight; raises for what is missing or has the wrong shape or format."""
    plan: dict[str, Entry] = {}
    assumed, missing = [], []
    for name, shape in wanted.items():
        stored = next((tensors[key] for key in candidates(name) if key in tensors), None)
        if stored is None:
            (assumed if name.endswith(".encode_layer_scalar") else missing).append(name)
            continue
        if stored.shape != shape:
            raise CheckpointError(
                f"{folder}: {stored.key} has the wrong shape: expected {list(shape)} by config.json, "
                f"found {list(stored.shape)}"
            )
        if isinstance(stored, Stored) and stored.dtype not in (BY_NAME if is_gguf(folder) else DTYPES):
            raise CheckpointError(
                f"{folder}: {stored.key} has number format {stored.dtype}; expected one of {', '.join(DTYPES)}"
            )
        plan[name] = stored
    if missing:
        named = ", ".join(candidates(name)[0] for name in missing[:5])
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(wanted)} weights are missing: {named}{' …' if len(missing) > 5 else ''}"
        )
    return plan, assumed


def main_dtype(plan: dict[str, Entry]) -> torch.dtype:
    """The number format that most bytes of the weights are stored in; bfloat16 where those are in few bits."""
    counts: Counter[str] = Counter()
    for stored in plan.values():
        counts[stored.dtype] += stored.nbytes
    return DTYPES.get(counts.most_common(1)[0][0], torch.bfloat16)


def _read(plan: dict[str, Entry], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Tensors by weight name: mapped where the file already holds what is wanted, else converted."""
    out: dict[str, Tensor] = {}
    mapped: dict[Path, list[tuple[str, Stored]]] = defaultdict(list)
    for name, stored in plan.items():
        if device.type == "cpu" and isinstance(stored, Stored) and DTYPES.get(stored.dtype) == dtype:
            mapped[stored.file].append((name, stored))
        else:
            out[name] = read_entry(stored, dtype, device)
    for file, stored in mapped.items():
        if is_gguf(file):
            out.update((name, map_stored(one)) for name, one in stored)
            continue
        weights = read_mapped(file, [one for _, one in stored])
        out.update(zip((name for name, _ in stored), weights, strict=True))
    return out

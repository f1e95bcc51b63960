"""`scumble convert`: a checkpoint in few bits, in the layout of compressed-tensors, made a matrix at a time.

Every layer becomes a file. Files are made in a folder beside the result, which gets its name when everything is there;
a conversion that was interrupted goes on after the last whole file. What the model does not need in few bits (the
embedding, norms, the router, self-conditioning, the vision tower) is copied.

With a calibration file, sample texts run through the model beside that, a layer at a time (calibrate/), and matrices
are rounded by what they are given there. A conversion that goes on runs them through the layers that are there first.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scumble.checkpoint.calibrate.run import TOKENS, Calibration, check_tokens, fingerprint
from scumble.checkpoint.calibrate.watch import LayerInputs
from scumble.checkpoint.files import DTYPES, INDEX, Stored, open_weights
from scumble.checkpoint.gguf.model import generation_json, is_gguf
from scumble.checkpoint.gguf.reader import read_gguf
from scumble.checkpoint.gguf.tokenizer import tokenizer_files
from scumble.checkpoint.load import Contents, read_contents
from scumble.checkpoint.names import DECODER, VISION, checkpoint_key
from scumble.checkpoint.pack import Packing, packing
from scumble.checkpoint.raw import read_bytes, read_stored
from scumble.checkpoint.schemes import Entry, read_entry
from scumble.checkpoint.schemes.assemble import FusedExperts, StackedExperts
from scumble.checkpoint.stream import Slot, StreamedFile
from scumble.config import write_model_config
from scumble.errors import CheckpointError, InvalidRequest, shown
from scumble.formats.compensate import compensated

FORMS = ("int4", "int8", "fp8", "nvfp4")
PLAIN = "bfloat16"  # what is in few bits becomes plain numbers again, in the layout of the release
CALIBRATED = ("int4", "int8")  # formats that calibration serves
LOOK = 4  # a layer's share of the progress while samples only look at it: one part in so many
KEPT = ("embed", "router", "self_conditioning", "vision_tower")  # parts of names that stay as they are
STATE = "conversion.json"
UNREACHED = "experts that calibration never reached"  # in the metadata of a layer's file
CPU = torch.device("cpu")
COPIED = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class Progress:
    """After every file: how much of how much is done, in numbers of the model; what is whole now, by name; whether the
    file was there already; and which experts of the layer calibration never reached."""

    done: int
    total: int
    part: str
    resumed: bool = False
    unreached: tuple[int, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A matrix to write in few bits, or a tensor to copy (module None). rows: of experts, (expert, begin, end)."""

    slots: list[Slot]
    entry: Entry
    module: str | None = None
    rows: tuple[int, int, int] | None = None


def convert(
    source: Path, out: Path, form: str, group: int = 32, keep: Sequence[str] = (), calibrate: Path | None = None,
    tokens: int = TOKENS,
) -> Iterator[Progress]:  # fmt: skip
    """Write `source` (a folder or GGUF file) to the folder `out` in `form`. Yields after every file that is done.

    group: numbers that share a scale (int4). keep: parts of module names that stay in bfloat16, beside KEPT.
    calibrate: texts like the model's own, plain or JSON Lines; int4 and int8 are then rounded by what so many `tokens`
    of them give the model's layers, experts one by one; an expert that they never reach is rounded to the nearest.
    Raises InvalidRequest for settings that make no sense, CheckpointError for what cannot be read or written; then
    `out` does not exist, and the same call goes on where it stopped.
    """
    _check(source, out, form, group)
    if calibrate is not None and form not in CALIBRATED:
        raise InvalidRequest(f"calibration serves {' and '.join(CALIBRATED)}; for {form} leave it out")
    check_tokens(tokens)
    found = read_contents(source)
    for name in keep:
        if not any(name in key for key in (*found.plan, *found.tensors)):
            raise InvalidRequest(
                f"keep: no weight of {source} has {shown(name)} in its name; try self_attn, mlp, experts or layers.0."
            )
    how, kept = None if form == PLAIN else packing(form, group), (*KEPT, *keep)
    parts, left = plan_files(found, how, kept)
    settings = {} if how is None else how.settings(ignored(kept, left))
    work = out.with_name(out.name + ".converting")
    files = {part: work / f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors" for i, part in enumerate(parts)}
    state = _state(source, form, group, kept)
    if calibrate is not None:
        state |= {"calibrate": fingerprint(calibrate), "tokens": tokens}
    try:
        calibration = None
        if calibrate is not None:
            calibration = Calibration(found, source, calibrate, tokens, settings)
        _begin(work, state)
        if calibration is not None and all(file.exists() for part, file in files.items() if _is_layer(part)):
            calibration = None  # what is left needs none
        yield from _write_files(parts, files, how, calibration)
        finish(work, found, source, settings, parts, {part: file.name for part, file in files.items()})
        os.rename(work, out)
    except OSError as error:
        raise CheckpointError(
            f"{out}: cannot be written: {error.strerror or error}; what is done stays in {work.name}: "
            "the same command goes on from there"
        ) from None


def _is_layer(part: str) -> bool:
    return part.startswith("layers.")


def _write_files(
    parts: dict[str, list[Piece]], files: dict[str, Path], how: Packing | None, calibration: Calibration | None
) -> Iterator[Progress]:
    counts = {part: sum(map(piece_count, pieces)) for part, pieces in parts.items()}
    done, total = 0, sum(counts.values())
    if calibration is not None:
        total += sum(count // LOOK for part, count in counts.items() if _is_layer(part))
        for index in calibration.look():
            done += counts[f"layers.{index}"] // LOOK
            yield Progress(done, total, f"first look: layers.{index}")
    for part, pieces in parts.items():
        resumed = files[part].exists()
        index = int(part.removeprefix("layers.")) if _is_layer(part) else None
        guided = calibration if index is not None else None
        if not resumed:
            with nullcontext() if guided is None or index is None else guided.inputs(index) as inputs:
                _write(files[part], pieces, how, inputs)
        if guided is not None and index is not None:
            guided.go_on(index, files[part])
        done += counts[part]
        yield Progress(done, total, part, resumed, _unreached(files[part]))


def _unreached(file: Path) -> tuple[int, ...]:
    """Experts that calibration never reached, as `_write` noted them."""
    with open_weights(file) as handle:
        noted = (handle.metadata() or {}).get(UNREACHED, "")
    return tuple(map(int, noted.split(","))) if noted else ()


def _check(source: Path, out: Path, form: str, group: int) -> None:
    if form not in (*FORMS, PLAIN):
        raise InvalidRequest(f"format must be one of {', '.join((*FORMS, PLAIN))}; found {shown(form)}")
    if not 8 <= group <= 4096 or group % 8:
        raise InvalidRequest(f"group size must be a multiple of 8 in 8 … 4096, found {group}")
    if out.resolve() == source.resolve():
        raise InvalidRequest(f"{out}: is the folder to convert; name another one for the result")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidRequest(f"{out}: is there already and is not empty; name a folder that does not exist yet")
    if out.exists():
        out.rmdir()
    if not out.parent.is_dir():
        raise InvalidRequest(f"{out.parent}: no such folder, so {out.name} cannot be made in it")


def plan_files(found: Contents, how: Packing | None, kept: Sequence[str]) -> tuple[dict[str, list[Piece]], list[str]]:
    """What each file holds: a file a layer, one for what is outside the layers, one for the vision tower.

    Second: modules that stay as they are because their columns are not whole groups.
    """
    parts: dict[str, list[Piece]] = {}
    left: list[str] = []
    for name, entry in found.plan.items():
        part = ".".join(name.split(".")[:2]) if name.startswith("layers.") else "the rest"
        if how is None:
            pieces = [Piece([Slot(checkpoint_key(name), "BF16", entry.shape)], entry)]
        else:
            pieces = list(_pieces(name, entry, how, kept, left))
        parts.setdefault(part, []).extend(pieces)
    vision = [stored for key, stored in found.tensors.items() if key.startswith(VISION)]
    if vision:
        parts["vision"] = [Piece([Slot(one.key, one.dtype, one.shape)], one) for one in vision]
    order = sorted(parts, key=lambda part: (not part.startswith("layers."), len(part), part))
    return {part: parts[part] for part in order}, left


def _pieces(name: str, entry: Entry, how: Packing, kept: Sequence[str], left: list[str]) -> Iterator[Piece]:
    key = checkpoint_key(name)
    if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
        prefix, last = key.rsplit(".", 1)
        count, rows, columns = entry.shape[0], entry.shape[1], entry.shape[-1]
        members = ("gate_proj", "up_proj") if last == "gate_up_proj" else ("down_proj",)
        each = rows // len(members)
        for expert in range(count):
            for i, member in enumerate(members):
                module = f"{prefix}.{expert}.{member}"
                yield _piece(module, each, columns, entry, (expert, i * each, (i + 1) * each), how, kept, left)
        return
    if name.endswith("_proj.weight"):
        rows, columns = entry.shape[0], entry.shape[-1]
        yield _piece(key.removesuffix(".weight"), rows, columns, entry, None, how, kept, left)
        return
    yield Piece([Slot(key, _plain_code(entry), entry.shape)], entry)


def _piece(
    module: str, rows: int, columns: int, entry: Entry, part: tuple[int, int, int] | None, how: Packing,
    kept: Sequence[str], left: list[str],
) -> Piece:  # fmt: skip
    whole = columns % how.group == 0
    if whole and not any(word in module for word in kept):
        return Piece(how.slots(module, rows, columns), entry, module, part)
    if not whole:
        left.append(module)
    return Piece([Slot(f"{module}.weight", _plain_code(entry), (rows, columns))], entry, None, part)


def _plain_code(entry: Entry) -> str:
    return entry.dtype if isinstance(entry, Stored) and entry.dtype in DTYPES else "BF16"


def piece_count(piece: Piece) -> int:
    """Numbers of the weight that a piece holds."""
    rows = piece.entry.shape[0] if piece.rows is None else piece.rows[2] - piece.rows[1]
    out = rows if piece.entry.shape else 1
    for axis in piece.entry.shape[1 if piece.rows is None else 2 :]:
        out *= axis
    return out


def _write(path: Path, pieces: list[Piece], how: Packing | None, inputs: LayerInputs | None = None) -> None:
    """inputs: what the layer's modules are given, which their rounding then goes by."""
    metadata = {UNREACHED: ",".join(map(str, inputs.unreached))} if inputs is not None and inputs.unreached else {}

    def source(piece: Piece) -> str | None:
        if piece.module is None or inputs is None:
            return None
        return inputs.source(piece.module.removeprefix(DECODER).split(".", 2)[2])

    with StreamedFile(path, [slot for piece in pieces for slot in piece.slots], metadata) as file:
        for given, together in groupby(pieces, source):
            if given is None or inputs is None:
                for piece in together:
                    _write_piece(file, piece, how)
                continue
            assert how is not None
            assert how.grid is not None
            assert how.store is not None
            weights = [_finite_matrix(piece) for piece in together]
            numbers, steps = compensated(torch.cat(weights), inputs.of(given), how.grid)
            rows = [len(weight) for weight in weights]
            for own_numbers, own_steps in zip(numbers.split(rows), steps.split(rows), strict=True):
                for tensor in how.store(own_numbers, own_steps):
                    file.write(tensor)


def _write_piece(file: StreamedFile, piece: Piece, how: Packing | None) -> None:
    entry = piece.entry
    if isinstance(entry, Stored) and entry.key == piece.slots[0].key and entry.dtype == piece.slots[0].dtype:
        file.write(read_stored(entry))  # as it is
    elif piece.module is None or how is None:
        dtype = DTYPES[piece.slots[0].dtype]
        whole = read_entry(entry, dtype, CPU) if piece.rows is None else _matrix(piece).to(dtype)
        file.write(whole.view(piece.slots[0].shape))
    else:
        for tensor in how.pack(_finite_matrix(piece)):
            file.write(tensor)


def _finite_matrix(piece: Piece) -> Tensor:
    weight = _matrix(piece)
    if not bool(torch.isfinite(weight.sum(dtype=torch.float32))):
        raise CheckpointError(
            f"{piece.entry.file}: {piece.module} must hold finite numbers, found NaN or infinity; "
            "get the checkpoint again"
        )
    return weight


def _matrix(piece: Piece) -> Tensor:
    """The piece's numbers in a float format; of experts only its rows are read."""
    entry = piece.entry
    if piece.rows is None:
        plain = isinstance(entry, Stored) and entry.dtype in DTYPES
        return read_entry(entry, DTYPES[entry.dtype] if plain else torch.float32, CPU)
    expert, begin, end = piece.rows
    if isinstance(entry, FusedExperts):
        at = 0
        for part in entry.parts[expert]:
            if at == begin:
                return read_entry(part, torch.float32, CPU)
            at += part.shape[0]
    if isinstance(entry, Stored) and entry.dtype in DTYPES:
        _, rows, columns = entry.shape
        dtype = DTYPES[entry.dtype]
        size = columns * dtype.itemsize
        data = read_bytes(entry, (expert * rows + begin) * size, (end - begin) * size)
        return data.view(dtype).view(end - begin, columns)
    if isinstance(entry, StackedExperts):
        one = entry.gate if begin == 0 else entry.up
        return read_entry(_single(one, expert), torch.float32, CPU)
    assert isinstance(entry, Stored)
    return read_entry(_single(entry, expert), torch.float32, CPU)[begin:end]


def _single(entry: Stored, index: int) -> Stored:
    """One matrix of several [E, rows, columns]."""
    nbytes = entry.nbytes // entry.shape[0]
    return Stored(entry.file, entry.key, entry.shape[1:], entry.dtype, entry.begin + index * nbytes, nbytes)


# --- the folder -----------------------------------------------------------------------------------------------------


def _state(source: Path, form: str, group: int, kept: Sequence[str]) -> dict[str, Any]:
    """What must be the same for a conversion to go on."""
    return {"source": str(source.resolve()), "format": form, "group_size": group, "keep": list(kept)}


def _begin(work: Path, state: dict[str, Any]) -> None:
    work.mkdir(exist_ok=True)
    file = work / STATE
    if file.exists():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            before = None
        if before != state:
            raise InvalidRequest(f"{work}: holds another unfinished conversion; finish it, or remove the folder")
        return
    if any(work.iterdir()):
        raise InvalidRequest(f"{work}: is there already and holds no conversion; remove it")
    temporary = file.with_suffix(".part")
    temporary.write_text(json.dumps(state), encoding="utf-8")
    os.replace(temporary, file)


def finish(
    work: Path, found: Contents, source: Path, settings: dict[str, Any], parts: dict[str, list[Piece]],
    names: dict[str, str],
) -> None:  # fmt: skip
    """Everything beside the weights."""
    weight_map = {slot.key: names[part] for part, pieces in parts.items() for piece in pieces for slot in piece.slots}
    total = sum(slot.nbytes for pieces in parts.values() for piece in pieces for slot in piece.slots)
    _json(work / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    raw = dict(found.config.source) if not is_gguf(source) else write_model_config(found.config, "bfloat16")
    for name in ("quantization_config", "compression_config", "quantization"):
        raw.pop(name, None)
    if settings:
        raw["quantization_config"] = settings
    else:
        raw["dtype"] = "bfloat16"
    _json(work / "config.json", raw)
    if is_gguf(source):
        gguf = read_gguf(source)
        for name, text in tokenizer_files(gguf).items():
            (work / name).write_text(text, encoding="utf-8")
        ids = {"eos_token_id": list(found.config.eos_token_ids), "bos_token_id": found.config.bos_token_id}
        _json(work / "generation_config.json", generation_json(gguf) | ids)
    else:
        for name in COPIED:
            if (source / name).is_file():
                shutil.copyfile(source / name, work / name)
    for left in (*work.glob(".*.part"), work / STATE):
        left.unlink(missing_ok=True)


def _json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def ignored(kept: Sequence[str], left: list[str]) -> list[str]:
    """The configuration's list of modules that stay as they are."""
    return ["lm_head", *(f"re:.*{word}.*" for word in kept), *left]

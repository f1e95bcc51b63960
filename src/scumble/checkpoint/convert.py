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
import re
import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scumble.checkpoint.calibrate.run import TOKENS, Calibration, check_tokens, fingerprint
from scumble.checkpoint.files import INDEX
from scumble.checkpoint.gguf.model import generation_json, is_gguf
from scumble.checkpoint.gguf.reader import read_gguf
from scumble.checkpoint.gguf.tokenizer import tokenizer_files
from scumble.checkpoint.load import Contents, read_contents
from scumble.checkpoint.pack import Packing, packing
from scumble.checkpoint.pieces import Piece, piece_count, plan_files, unreached_experts, write_file
from scumble.config import write_model_config
from scumble.errors import CheckpointError, InvalidRequest, shown

FORMS = ("int4", "int8", "fp8", "nvfp4")
PLAIN = "bfloat16"  # what is in few bits becomes plain numbers again, in the layout of the release
CALIBRATED = ("int4", "int8")  # formats that calibration serves
LOOK = 4  # a layer's share of the progress while samples only look at it: one part in so many
KEPT = ("embed", "router", "self_conditioning", "vision_tower")  # parts of names that stay as they are
STATE = "conversion.json"
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


def convert(
    source: Path,
    out: Path,
    form: str,
    group: int = 32,
    keep: Sequence[str] = (),
    calibrate: Path | None = None,
    tokens: int = TOKENS,
) -> Generator[Progress, None, None]:
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
    how, kept = None if form == PLAIN else packing(form, group), (*KEPT, *keep)
    parts, left = plan_files(found, how, kept)
    written = [slot.key for pieces in parts.values() for piece in pieces for slot in piece.slots]
    for name in keep:
        if not any(name in key for key in (*found.plan, *written)):
            raise InvalidRequest(
                f"keep: no weight of {source} has {shown(name)} in its name; try self_attn, mlp, experts, experts.7. "
                "(that one alone) or layers.0."
            )
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
        (out / STATE).unlink()  # not before: a folder without it would not go on
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
                write_file(files[part], pieces, how, inputs)
        if guided is not None and index is not None:
            guided.go_on(index, files[part])
        done += counts[part]
        yield Progress(done, total, part, resumed, unreached_experts(files[part]))


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
    temporary = file.with_suffix(".part")
    if any(one != temporary for one in work.iterdir()):
        raise InvalidRequest(f"{work}: is there already and holds no conversion; remove it")
    temporary.write_text(json.dumps(state), encoding="utf-8")
    os.replace(temporary, file)


def finish(
    work: Path,
    found: Contents,
    source: Path,
    settings: dict[str, Any],
    parts: dict[str, list[Piece]],
    names: dict[str, str],
) -> None:
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
    for left in work.glob(".*.part"):
        left.unlink()


def _json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def ignored(kept: Sequence[str], left: list[str]) -> list[str]:
    """The configuration's list of modules that stay as they are."""
    return ["lm_head", *(f"re:.*{re.escape(word)}.*" for word in kept), *left]

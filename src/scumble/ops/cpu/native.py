"""The native CPU kernels: the loaded library, the arguments of its functions, and the structures that it shares.

No compiler, or a processor without AVX2 and FMA: `library()` is None and `why_not()` says why.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import shutil
import subprocess
from functools import cache
from typing import Any

import torch
from torch import Tensor

from scumble.ops.cpu.binary import InstructionSet, build, choose_instructions, processor_features

log = logging.getLogger("scumble")

# Arguments of every kernel: p pointer, l int64, f float, i int (the number of threads, last where there are several).
# A "!" in front: it returns a code, 0 for done; anything else becomes a Python exception (see `_check`).
KINDS = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "f": ctypes.c_float, "i": ctypes.c_int}
SIGNATURES = {
    "scumble_rms_norm": "ppp lll f i",
    "scumble_attention_tail": "ppppp ppp ll f i",
    "scumble_layer_tail": "ppp ppp ppp p ll f i",
    "scumble_norm_rope": "ppppp lll f i",
    "scumble_geglu": "ppp l i",
    "scumble_attention": "!pppp lllllllll i",
    "scumble_router": "pppp ppp llll f i",
    "scumble_pack_experts": "pppp lll i",
    "scumble_experts": "!ppp pp pp pp lllll i",
    "scumble_experts_int8": "!ppp ppp ppp ppp p lllll i",
    "scumble_layer": "!ppppp pp f i",
    "scumble_pack_bf16": "pp ll i",
    "scumble_linear": "!pppp lll i",
    "scumble_pack_int8": "ppp ll",
    "scumble_quantize_rows": "ppp ll i",
    "scumble_quantized_linear": "ppp ppp p lll i",
    "scumble_linear_int8": "ppppp p lll i",
    "scumble_linear_four": "!ppppp pppp lll llll i",
    "scumble_quantize_four": "ppp lll i",
    "scumble_experts_four": "!ppp ppp ppp pp lllllll lllll i",
    "scumble_vocab_tile": "pp lll pp pl i",
    "scumble_vocab_soft": "!pppp lll i",
    "scumble_class_draw": "pppp pppp lll i",
    "scumble_law": "!ppppp ppp pppp ppppp lllll i",
    "scumble_vocab_finish": "pppp ppp ll i",
    "scumble_vocab_sample": "pppp p l i",
    "scumble_train_norm": "pppp llll f i",
    "scumble_train_norm_back": "!pppppp llll i",
    "scumble_train_add_norm": "pppp pp ll f i",
    "scumble_train_add_norm_back": "!ppppp ppp ll i",
    "scumble_train_norm_rope": "pppp pp lll f i",
    "scumble_train_norm_rope_back": "!pppppp pp lll i",
    "scumble_train_geglu": "ppp lll i",
    "scumble_train_geglu_back": "ppppp lll i",
    "scumble_train_route": "!p lll pp",
    "scumble_train_scatter": "pppp lll i",
    "scumble_train_gather": "pppp lll i",
    "scumble_train_gather_dots": "pppp lll i",
    "scumble_train_attention": "!pppp lllllll i",
    "scumble_train_attention_back": "!pppp ppp lllllll i",
    "scumble_train_cross_entropy": "ppppp ll f i",
}


class LayerWeights(ctypes.Structure):
    """struct Weights of src/layer.cpp: a layer's vectors, then four addresses a matrix (panels, shift, scale, four)."""

    VECTORS = (
        "input_norm", "q_norm", "k_norm", "attention_norm", "mlp_norm", "experts_norm", "after_mlp", "after_experts",
        "after_both", "router_scale", "router", "per_expert", "denoise_scalar", "encode_scalar",
    )  # fmt: skip
    MATRICES = ("q", "k", "v", "o", "gate", "up", "down", "experts_up", "experts_down")
    _fields_ = [
        *((name, ctypes.c_void_p) for name in VECTORS),
        *((f"{name}_{part}", ctypes.c_void_p) for name in MATRICES for part in ("panels", "shift", "scale", "four")),
    ]


class FourWeight(ctypes.Structure):
    """struct FourWeight of src/layer.cpp: one matrix of four bits."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("packed", "scale", "zero", "factor")),
        *((name, ctypes.c_int64) for name in ("k", "columns", "group", "scales", "table", "zero_point")),
    ]


class FourExperts(ctypes.Structure):
    """struct FourExperts of src/layer.cpp: where the matrices of all experts are, and their sizes."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("gate", "up", "down")),
        *((name, ctypes.c_int64) for name in ("d", "f", "f_in", "d_out", "group", "down_group")),
        *((name, ctypes.c_int64) for name in ("scales", "table", "zero_point")),
    ]


class LayerSizes(ctypes.Structure):
    """struct Sizes of src/layer.cpp."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "rows", "n", "d", "heads", "groups", "k", "mlp", "experts", "chosen", "width",
        )
    ]  # fmt: skip


class LayerRow(ctypes.Structure):
    """struct Row of src/layer.cpp: the tokens of one row, and its cache."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        *((name, ctypes.c_int64) for name in ("n", "stride", "start", "end", "window", "first", "few")),
    ]


class VocabState(ctypes.Structure):
    """struct VocabState of src/vocab.h."""

    POINTERS = (
        "table", "heat", "allowed", "mask", "targets", "peak", "argmax", "total", "energy", "mass", "factor",
        "target_z", "best", "best_ids", "scratch",
    )  # fmt: skip
    _fields_ = [
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_int64) for name in ("vocab", "blocks", "top", "room")),
    ]


class VocabHead(ctypes.Structure):
    """struct VocabHead of src/vocab.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("hidden", "q", "q_scale", "panels", "shift", "scale")),
        ("d", ctypes.c_int64),
    ]


class ClassTile(ctypes.Structure):
    """struct ClassTile of src/classes.h."""

    POINTERS = ("order", "begins", "kinds", "peak", "total", "energy", "best", "tops", "sums")
    _fields_ = [
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_int64) for name in ("runs", "count", "from", "all_runs", "begin", "end")),
    ]


SHARED = {
    "scumble_layer_weights_size": LayerWeights,
    "scumble_layer_sizes_size": LayerSizes,
    "scumble_layer_row_size": LayerRow,
    "scumble_four_weight_size": FourWeight,
    "scumble_four_experts_size": FourExperts,
    "scumble_vocab_state_size": VocabState,
    "scumble_vocab_head_size": VocabHead,
    "scumble_class_tile_size": ClassTile,
}


def library() -> ctypes.CDLL | None:
    """The loaded kernels, or None where torch has to serve. Decided once a process."""
    found = _found()
    return None if isinstance(found, str) else found[0]


def instructions() -> str:
    """The name of the instruction set that the loaded kernels are built for; empty where there are none."""
    found = _found()
    return "" if isinstance(found, str) else found[1].name


def why_not() -> str | None:
    """Why there are no kernels, in a few words; None: there are."""
    found = _found()
    return found if isinstance(found, str) else None


@cache
def _found() -> tuple[ctypes.CDLL, InstructionSet] | str:
    try:
        return _load()
    except (OSError, subprocess.SubprocessError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else None
        reason = str(said or error).strip()[:500]
        log.warning("native CPU kernels cannot be built or loaded: %s", reason)
        return f"its kernels cannot be built or loaded: {reason.splitlines()[0] if reason else type(error).__name__}"


def lacking() -> str | None:
    """What this machine lacks for any kernels, in a few words, found without building them; None: nothing."""
    needed = _needed()
    return needed if isinstance(needed, str) else None


def _needed() -> tuple[str, InstructionSet] | str:
    """The compiler and the instruction set to build for, or what is missing."""
    if platform.machine() != "x86_64":  # Windows says AMD64: nobody has built the kernels there
        return f"its kernels are for x86-64 on Linux and macOS, this is {platform.machine()} on {platform.system()}"
    chosen = choose_instructions(processor_features())
    if isinstance(chosen, str):
        return chosen
    names = (os.environ.get("CXX", ""), "g++", "clang++")
    compiler = next((path for name in names if (path := shutil.which(name))), None)
    return (compiler, chosen) if compiler else "found no C++ compiler (g++ or clang++) to build its kernels with"


def _load() -> tuple[ctypes.CDLL, InstructionSet] | str:
    needed = _needed()
    if isinstance(needed, str):
        return needed
    compiler, chosen = needed
    path = build(compiler, chosen)
    loaded = ctypes.CDLL(str(path))
    for name, kinds in SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes = [KINDS[kind] for kind in kinds.lstrip("!").replace(" ", "")]
        function.restype = ctypes.c_int if kinds.startswith("!") else None
        if kinds.startswith("!"):
            function.errcheck = _check
    compare_layouts(loaded)
    return loaded, chosen


def compare_layouts(loaded: ctypes.CDLL) -> None:
    """Raises RuntimeError, with the name, where a structure that goes over by position has another size in C++."""
    for name, structure in SHARED.items():
        function = getattr(loaded, name)
        function.restype = ctypes.c_int64
        mine, theirs = ctypes.sizeof(structure), function()
        if mine != theirs:
            raise RuntimeError(
                f"{structure.__name__} has {mine} bytes here and {theirs} in the kernels: ops/cpu/native.py and "
                "ops/cpu/src must list the same fields"
            )


def _check(code: int, function: Any, arguments: Any) -> int:
    """What a kernel could not do, as an exception."""
    if code == 1:
        raise MemoryError(f"{function.__name__}: no memory for intermediate results")
    if code:
        raise RuntimeError(f"{function.__name__} failed with code {code}")
    return code


def pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def address(x: Tensor | None) -> int | None:
    """Where the numbers of a bfloat16 tensor lie; None for None."""
    if x is None:
        return None
    if x.dtype is not torch.bfloat16 or not x.is_contiguous():
        raise TypeError(
            f"the kernels read contiguous bfloat16, found {x.dtype}, strides {x.stride()} of {tuple(x.shape)}"
        )
    return x.data_ptr()

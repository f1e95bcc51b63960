"""What `quantization_config` (or ModelOpt's `hf_quant_config.json`) says: which module is stored in which scheme.

Every tool has a dialect of its own; all become one Quantization. A scheme that nothing here reads is refused by its
name, because weights read by another rule than they were written by are noise.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from scumble.checkpoint.quantized import Scheme as Declared
from scumble.checkpoint.schemes.patterns import matcher
from scumble.errors import CheckpointError, shown

Layout = Literal["packed", "int8", "fp8", "nvfp4", "modelopt-nvfp4", "gptq", "awq"]
Strategy = Literal["tensor", "channel", "group", "block"]

READABLE = (
    "compressed-tensors pack-quantized (int4), int-quantized (int8), float-quantized (fp8), nvfp4-pack-quantized; "
    "ModelOpt FP8 and NVFP4; fp8 in blocks; GPTQ and AutoRound in 4 bits; AWQ (gemm)"
)


@dataclass(frozen=True)
class Scheme:
    """How one linear layer's weight is stored.

    layout: names and packing of its tensors.  bits: of a number.
    strategy: what shares a scale: the tensor, an output channel, `group` numbers of a channel, or a `block` of
        [rows, columns].
    symmetric: there are no zero points.
    """

    layout: Layout
    bits: int
    strategy: Strategy
    group: int = 0
    block: tuple[int, int] = (0, 0)
    symmetric: bool = True
    zero_shift: int = 0  # what GPTQ's first format subtracts from zero points before it stores them

    @property
    def name(self) -> str:
        kind = {"fp8": "fp8", "nvfp4": "nvfp4", "modelopt-nvfp4": "nvfp4"}.get(self.layout, f"int{self.bits}")
        by = {
            "tensor": "one scale a tensor",
            "channel": "one scale a channel",
            "group": f"groups of {self.group}",
            "block": f"blocks of {self.block[0]} × {self.block[1]}",
        }[self.strategy]
        return f"{kind}, {by}{'' if self.symmetric else ', zero points'}"


@dataclass(frozen=True)
class Rule:
    """A scheme, and which modules it is for. `None` as scheme: these stay as they are."""

    scheme: Scheme | None
    matches: Callable[[str], bool]


@dataclass(frozen=True)
class Quantization:
    """method: the tool's name. file: where it was read. rules: the first that matches a module's name decides."""

    method: str
    file: Path
    rules: tuple[Rule, ...]

    def scheme(self, module: str) -> Scheme | None:
        """Of the linear layer of this name (`model.decoder.layers.0.mlp.up_proj`); None: it is not quantized."""
        return next((rule.scheme for rule in self.rules if rule.matches(module)), None)


def parse_quantization(declared: Declared) -> Quantization:
    """What a folder declares (see quantized.py), module by module. Raises CheckpointError for what is not read."""
    raw, file = declared.settings, declared.file
    if isinstance(raw.get("quantization"), dict):  # hf_quant_config.json wraps it
        raw = {"quant_method": "modelopt", **raw["quantization"]}
    method = raw.get("quant_method")
    parsers = {
        "compressed-tensors": _compressed_tensors,
        "modelopt": _modelopt,
        "modelopt_fp4": _modelopt,
        "gptq": _gptq,
        "auto-round": _gptq,
        "awq": _awq,
        "fp8": _fp8,
    }
    if method not in parsers:
        raise CheckpointError(
            f"{file}: the weights are quantized ({declared.name}), which Scumble cannot read; {_advice()}"
        )
    return parsers[method](raw, file)


def _advice() -> str:
    return f"Scumble reads {READABLE}; take such a folder, a GGUF file, or the bfloat16 release"


# --- compressed-tensors ---------------------------------------------------------------------------------------------


def _compressed_tensors(raw: Mapping[str, Any], file: Path) -> Quantization:
    for name in ("sparsity_config", "transform_config"):
        if raw.get(name):
            raise CheckpointError(f"{file}: {name} is not supported; {_advice()}")
    if raw.get("quantization_status") not in (None, "compressed", "frozen"):
        status = shown(raw["quantization_status"])
        raise CheckpointError(f"{file}: quantization_status must be 'compressed', found {status}; save it compressed")
    groups = raw.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise CheckpointError(f"{file}: config_groups must name at least one group, found {shown(groups)}")
    ignored = _strings(raw, "ignore", file)
    rules = [Rule(None, _names(ignored, file))] if ignored else []
    by_name, by_class = [], []
    for label, group in groups.items():
        if not isinstance(group, dict):
            raise CheckpointError(f"{file}: config group {label} must be an object, found {shown(group)}")
        targets = _strings(group, "targets", file)
        scheme = _group_scheme(group, raw.get("format"), f"{file}, config group {label}")
        classes = [target for target in targets if target in ("Linear", "Gemma4ClippableLinear")]
        if classes:
            by_class.append(Rule(scheme, lambda _: True))
        named = [target for target in targets if target not in classes]
        if named:
            by_name.append(Rule(scheme, _names(named, file)))
        if not targets:
            raise CheckpointError(f"{file}, config group {label}: targets must name modules or 'Linear', found none")
    return Quantization("compressed-tensors", file, (*rules, *by_name, *by_class))


def _group_scheme(group: Mapping[str, Any], top_format: Any, where: str) -> Scheme:
    weights = group.get("weights")
    if not isinstance(weights, dict):
        raise CheckpointError(f"{where}: weights must be an object, found {shown(weights)}")
    bits, kind = weights.get("num_bits", 8), weights.get("type", "int")
    form = group.get("format") or top_format
    layouts: dict[tuple[Any, Any, Any], Layout] = {
        ("pack-quantized", "int", 4): "packed",
        ("pack-quantized", "int", 8): "packed",
        ("int-quantized", "int", 8): "int8",
        ("naive-quantized", "int", 8): "int8",
        ("float-quantized", "float", 8): "fp8",
        ("naive-quantized", "float", 8): "fp8",
        ("nvfp4-pack-quantized", "float", 4): "nvfp4",
    }
    layout = layouts.get((form, kind, bits))
    if layout is None:
        raise CheckpointError(f"{where}: format {shown(form)} of {shown(bits)}-bit {kind} is not read; {_advice()}")
    strategy, block, size = weights.get("strategy"), weights.get("block_structure"), weights.get("group_size")
    if strategy is None:
        strategy = "tensor" if size is None else "channel" if size == -1 else "group"
    if strategy == "tensor_group":
        strategy = "group"
    if strategy not in ("tensor", "channel", "group", "block"):
        raise CheckpointError(f"{where}: strategy must be tensor, channel, group or block, found {shown(strategy)}")
    scheme = Scheme(layout, bits, strategy, symmetric=bool(weights.get("symmetric", True)))
    if layout == "nvfp4" and (strategy != "group" or size != 16):
        raise CheckpointError(f"{where}: nvfp4 has groups of 16, found {shown(strategy)} of {shown(size)}")
    if strategy == "group":
        scheme = replace(scheme, group=_group_size(size, where))
    if strategy == "block":
        if isinstance(block, str):
            block = [int(part) for part in block.split("x") if part.isdigit()]
        scheme = replace(scheme, block=_block(block, where))
    return scheme


def _names(patterns: list[str], file: Path) -> Callable[[str], bool]:
    """Matches a module whose name is in the list, or that a `re:` pattern matches from its beginning."""
    exact = {pattern for pattern in patterns if not pattern.startswith("re:")}
    fits = matcher([pattern[3:] for pattern in patterns if pattern.startswith("re:")], file)
    return lambda module: module in exact or fits(module)


# --- ModelOpt -------------------------------------------------------------------------------------------------------


def _modelopt(raw: Mapping[str, Any], file: Path) -> Quantization:
    algorithm = raw.get("quant_algo")
    ignored = [*_strings(raw, "exclude_modules", file), *_strings(raw, "ignore", file)]
    rules = [Rule(None, _globs(ignored))] if ignored else []
    layers = raw.get("quantized_layers")
    if algorithm == "MIXED_PRECISION":
        if not isinstance(layers, dict) or not layers:
            raise CheckpointError(f"{file}: MIXED_PRECISION needs quantized_layers, found {shown(layers)}")
        for module, entry in layers.items():
            entry = entry if isinstance(entry, dict) else {}
            scheme = _modelopt_scheme(entry.get("quant_algo"), entry, f"{file}, {module}")
            rules.append(Rule(scheme, _equals(module)))
    else:
        size = raw.get("group_size")
        groups = raw.get("config_groups")
        if size is None and isinstance(groups, dict) and groups:
            first = next(iter(groups.values()))
            weights = first.get("weights") if isinstance(first, dict) else None
            size = weights.get("group_size") if isinstance(weights, dict) else None
        rules.append(Rule(_modelopt_scheme(algorithm, {"group_size": size}, str(file)), lambda _: True))
    return Quantization("modelopt", file, tuple(rules))


def _modelopt_scheme(algorithm: Any, entry: Mapping[str, Any], where: str) -> Scheme:
    if algorithm == "FP8":
        return Scheme("fp8", 8, "tensor")
    if algorithm in ("FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO"):
        return Scheme("fp8", 8, "channel") if "CHANNEL" in algorithm else Scheme("fp8", 8, "block", block=(128, 128))
    if algorithm in ("NVFP4", "W4A16_NVFP4", "NVFP4_AWQ"):
        size = entry.get("group_size")
        if size not in (None, 16):
            raise CheckpointError(f"{where}: nvfp4 has groups of 16, found {shown(size)}")
        if algorithm == "NVFP4_AWQ":
            raise CheckpointError(f"{where}: NVFP4_AWQ also scales activations, which is not supported; {_advice()}")
        return Scheme("modelopt-nvfp4", 4, "group", 16)
    raise CheckpointError(f"{where}: quant_algo {shown(algorithm)} is not read; {_advice()}")


def _globs(patterns: list[str]) -> Callable[[str], bool]:
    """Matches a module, or one inside a module, by a shell pattern."""
    return lambda module: any(
        fnmatch.fnmatchcase(module, one) or fnmatch.fnmatchcase(module, one + ".*") for one in patterns
    )


def _equals(name: str) -> Callable[[str], bool]:
    return lambda module: module == name


# --- GPTQ, AutoRound, AWQ, fp8 in blocks ----------------------------------------------------------------------------


def _gptq(raw: Mapping[str, Any], file: Path) -> Quantization:
    method, packing = str(raw.get("quant_method")), str(raw.get("packing_format", "auto_round:auto_gptq"))
    if method == "auto-round" and packing.endswith("awq"):
        return _awq({**raw, "version": "gemm"}, file)
    bits = raw.get("bits")
    if bits != 4:
        raise CheckpointError(f"{file}: {method} of {shown(bits)} bits is not read; {_advice()}")
    shift = 0 if raw.get("checkpoint_format") == "gptq_v2" or packing.endswith("gptq_v2") else 1
    size = raw.get("group_size", 128)
    scheme = Scheme("gptq", 4, "channel", zero_shift=shift)  # zero points are always stored
    if size != -1:
        scheme = replace(scheme, strategy="group", group=_group_size(size, str(file)))
    rules = []
    extra = raw.get("extra_config") or {}
    if not isinstance(extra, dict):
        raise CheckpointError(f"{file}: extra_config must be an object, found {shown(extra)}")
    for module, entry in extra.items():
        own = entry.get("bits", 4) if isinstance(entry, dict) else None
        if own not in (4, 16, 32):
            raise CheckpointError(f"{file}: extra_config of {module}: {shown(own)} bits are not read; {_advice()}")
        rules.append(Rule(scheme if own == 4 else None, _equals(module)))
    return Quantization(method, file, (*rules, Rule(scheme, lambda _: True)))


def _awq(raw: Mapping[str, Any], file: Path) -> Quantization:
    bits, version = raw.get("bits", raw.get("w_bit")), str(raw.get("version", "gemm")).lower()
    if bits != 4 or version != "gemm":
        raise CheckpointError(f"{file}: AWQ {version!r} of {shown(bits)} bits is not read; {_advice()}")
    size = raw.get("group_size", raw.get("q_group_size", 128))
    scheme = Scheme("awq", 4, "group", _group_size(size, str(file)), symmetric=not raw.get("zero_point", True))
    kept = _strings(raw, "modules_to_not_convert", file)
    rules = [Rule(None, lambda module: any(one in module for one in kept))] if kept else []
    return Quantization("awq", file, (*rules, Rule(scheme, lambda _: True)))


def _fp8(raw: Mapping[str, Any], file: Path) -> Quantization:
    kept = _strings(raw, "modules_to_not_convert", file)
    rules = [Rule(None, lambda module: any(one in module for one in kept))] if kept else []
    size = raw.get("weight_block_size")
    scheme = Scheme("fp8", 8, "tensor") if size is None else Scheme("fp8", 8, "block", block=_block(size, str(file)))
    return Quantization("fp8", file, (*rules, Rule(scheme, lambda _: True)))


# --- values ---------------------------------------------------------------------------------------------------------


def _strings(raw: Mapping[str, Any], name: str, file: Path) -> list[str]:
    value = raw.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise CheckpointError(f"{file}: {name} must be a list of texts, found {shown(value)}")
    return value


def _group_size(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 2**20:
        raise CheckpointError(f"{where}: group_size must be a whole number in 1 … 1048576, found {shown(value)}")
    return value


def _block(value: Any, where: str) -> tuple[int, int]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise CheckpointError(f"{where}: a block must be [rows, columns], found {shown(value)}")
    return _group_size(value[0], where), _group_size(value[1], where)

"""Folders of small random models as other tools write them, beside the weights that their numbers mean.

The `compressed-tensors` package packs and unpacks its own formats here, `gguf` its own; GPTQ, AWQ and ModelOpt are
written by hand, in the plainest way. A test whose package is not installed is skipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from scumble.config import LayerConfig
from scumble.model import Transformer
from tiny import save_folder, tiny_model

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

IGNORED = ["lm_head", "re:.*embed.*", "re:.*router", "re:.*vision_tower.*", "re:.*self_conditioning.*"]
SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 64,
    "layers": (LayerConfig("sliding_attention", 16, 2), LayerConfig("full_attention", 32, 1)),
}  # fmt: skip
Packer = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]  # weight -> stored tensors, and what they mean


@dataclass(frozen=True)
class Foreign:
    """folder: as the tool wrote it. meant: the weights by their keys in the release's layout, in float32."""

    folder: Path
    meant: dict[str, Tensor]


def foreign_model(seed: int = 0, **changes: Any) -> Transformer:
    return tiny_model(seed, torch.bfloat16, **{**SIZES, **changes})


def write_foreign(
    folder: Path, pack: Packer, settings: dict[str, Any] | None, quantized: Callable[[str], bool], **changes: Any
) -> Foreign:
    """Save a tiny model, un-fuse its experts, and pack every linear layer whose name `quantized` chooses."""
    model = foreign_model(**changes)
    save_folder(folder, model, tokenizer=True)
    released = load_file(folder / "model.safetensors")
    stored: dict[str, Tensor] = {}
    meant: dict[str, Tensor] = {}
    for key, tensor in released.items():
        if ".experts." in key:
            meant[key] = _experts(key, tensor, pack, quantized, stored)
            continue
        module = key.removesuffix(".weight")
        if key.endswith("_proj.weight") and quantized(module):
            parts, meant[key] = pack(tensor)
            stored |= {f"{module}.{name}": part for name, part in parts.items()}
        else:
            stored[key], meant[key] = tensor, tensor.float()
    save_file({key: tensor.contiguous() for key, tensor in stored.items()}, folder / "model.safetensors")
    if settings is not None:
        change_json(folder / "config.json", quantization_config=settings)
    return Foreign(folder, meant)


def _experts(
    key: str, tensor: Tensor, pack: Packer, quantized: Callable[[str], bool], stored: dict[str, Tensor]
) -> Tensor:
    prefix, names = key.rsplit(".", 1)[0], ("gate", "up") if "gate_up" in key else ("down",)
    out = torch.empty(tensor.shape)
    for index, both in enumerate(tensor):
        means = []
        for name, weight in zip(names, both.chunk(len(names)), strict=True):
            module = f"{prefix}.{index}.{name}_proj"
            if quantized(module):
                parts, mean = pack(weight.contiguous())
            else:
                parts, mean = {"weight": weight.contiguous()}, weight.float()
            stored |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
            means.append(mean)
        out[index] = torch.cat(means)
    return out


def change_json(file: Path, **changes: Any) -> None:
    raw = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(raw))


def by_default(module: str) -> bool:
    return "self_conditioning" not in module and "router" not in module


# --- compressed-tensors ---------------------------------------------------------------------------------------------


def compressed_tensors(form: str, **weights: Any) -> tuple[Packer, dict[str, Any]]:
    """A packer by the package's own compressor, and the quantization_config."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    args = QuantizationArgs(**weights)
    activations = QuantizationArgs(num_bits=8, type=weights.get("type", "int"), strategy="token", dynamic=True)
    scheme = QuantizationScheme(
        targets=["Linear"], weights=args, input_activations=None if "pack" in form else activations, format=form
    )
    compressor: Any = BaseCompressor.get_value_from_registry(form)

    def pack(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        state = {"weight": weight.float(), **quantization_parameters(weight.float(), args)}
        stored = compressor.compress(state, scheme)
        return stored, unpacked(stored, scheme, compressor)

    settings = {
        "quant_method": "compressed-tensors", "format": form, "ignore": IGNORED, "quantization_status": "compressed",
        "config_groups": {"group_0": json.loads(scheme.model_dump_json())},
    }  # fmt: skip
    return pack, settings


def unpacked(stored: dict[str, Tensor], scheme: QuantizationScheme, compressor: Any) -> Tensor:
    """What the package unpacks, with the scales as they are stored but all arithmetic in float32."""
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    if "weight_global_scale" in stored:  # its own way back rounds to bfloat16
        rows, half = stored["weight_packed"].shape
        numbers = unpack_fp4_from_uint8(stored["weight_packed"], rows, 2 * half, dtype=torch.float32)
        scale = stored["weight_scale"].float()
        return dequantize(numbers, scale, args=scheme.weights, global_scale=stored["weight_global_scale"]).float()
    wide = {name: part.float() if part.dtype is torch.bfloat16 else part for name, part in stored.items()}
    return compressor.decompress(wide, scheme)["weight"].float()


def quantization_parameters(weight: Tensor, args: QuantizationArgs) -> dict[str, Tensor]:
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    match args.strategy:
        case "tensor":
            view, axes = weight, (0, 1)
        case "channel":
            view, axes = weight, (1,)
        case "block":
            assert args.block_structure is not None
            rows, columns = args.block_structure
            view = weight.unflatten(0, (-1, rows)).unflatten(2, (-1, columns))
            axes = (1, 3)
        case _:
            view, axes = weight.unflatten(1, (-1, args.group_size)), (2,)
    low, high = view.amin(axes, keepdim=args.strategy == "channel"), view.amax(axes, keepdim=args.strategy == "channel")
    out = {}
    shared = None
    if args.num_bits == 4 and args.type == "float":
        shared = out["weight_global_scale"] = generate_gparam(weight.min(), weight.max()).reshape(1)
    scale, zero = calculate_qparams(low, high, args, global_scale=shared)
    out["weight_scale"] = scale if scale.dtype is torch.float8_e4m3fn or shared is not None else scale.bfloat16()
    if not args.symmetric:
        out["weight_zero_point"] = zero
    return out


INT4, INT8, FP8 = {"num_bits": 4, "type": "int"}, {"num_bits": 8, "type": "int"}, {"num_bits": 8, "type": "float"}
COMPRESSED = {
    "int4 group 32": ("pack-quantized", INT4 | {"strategy": "group", "group_size": 32}),
    "int4 group 64": ("pack-quantized", INT4 | {"strategy": "group", "group_size": 64}),
    "int4 channel": ("pack-quantized", INT4 | {"strategy": "channel"}),
    "int4 zero points": ("pack-quantized", INT4 | {"strategy": "group", "group_size": 32, "symmetric": False}),
    "int4 zero points, channel": ("pack-quantized", INT4 | {"strategy": "channel", "symmetric": False}),
    "int8 packed": ("pack-quantized", INT8 | {"strategy": "channel"}),
    "int8 channel": ("int-quantized", INT8 | {"strategy": "channel"}),
    "int8 tensor": ("int-quantized", INT8 | {"strategy": "tensor"}),
    "int8 zero points": ("int-quantized", INT8 | {"strategy": "channel", "symmetric": False}),
    "fp8 tensor": ("float-quantized", FP8 | {"strategy": "tensor"}),
    "fp8 channel": ("float-quantized", FP8 | {"strategy": "channel"}),
    "fp8 block": ("float-quantized", FP8 | {"strategy": "block", "block_structure": [16, 32]}),
    "nvfp4": ("nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}),
}


def experts_only(module: str) -> bool:
    return ".experts." in module


def linears(module: str) -> bool:
    return module.startswith("model.decoder.layers.") and "router" not in module


# --- ModelOpt, GPTQ, AWQ, by hand -----------------------------------------------------------------------------------


def modelopt_nvfp4() -> tuple[Packer, dict[str, Any]]:
    pack_theirs, _ = compressed_tensors(
        "nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16
    )

    def pack(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        stored, meant = pack_theirs(weight)
        return {
            "weight": stored["weight_packed"],
            "weight_scale": stored["weight_scale"],
            "weight_scale_2": (1 / stored["weight_global_scale"]).reshape(()),
            "input_scale": torch.tensor(0.5),
        }, meant

    ignored = ["lm_head", "*self_attn*", "*.mlp.*", "*router*"]
    return pack, {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "ignore": ignored}


def modelopt_fp8() -> tuple[Packer, dict[str, Any]]:
    def pack(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        scale = weight.float().abs().max() / 448
        numbers = (weight.float() / scale).to(torch.float8_e4m3fn)
        return {"weight": numbers, "weight_scale": scale, "input_scale": torch.tensor(1.0)}, numbers.float() * scale

    return pack, {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}


def _words(numbers: Tensor, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Numbers 0 … 15 [..., 8n] -> int32 [..., n]; number i lies at nibble order[i]."""
    out = torch.zeros(*numbers.shape[:-1], numbers.shape[-1] // 8, dtype=torch.int64)
    for i in range(8):
        out |= numbers[..., i::8].long() << 4 * order[i]
    return (out - (out >> 31 << 32)).to(torch.int32)


def _grouped(weight: Tensor, group: int, zeros: bool) -> tuple[Tensor, Tensor, Tensor]:
    """weight -> numbers 0 … 15 [out, in], float16 scales and zero points [out, groups]."""
    runs = weight.float().unflatten(1, (-1, group))
    low, high = runs.amin(2).clamp(max=0), runs.amax(2).clamp(min=0)
    scale = ((high - low) / 15 if zeros else runs.abs().amax(2) / 7).half()
    zero = (-low / scale.float()).round().clamp(1, 15) if zeros else torch.full_like(low, 8.0)
    numbers = (runs / scale.float()[:, :, None] + zero[:, :, None]).round().clamp(0, 15)
    return numbers.flatten(1), scale, zero


def gptq(group: int = 32, ordered: bool = False, version: str = "gptq") -> tuple[Packer, dict[str, Any]]:
    """ordered: columns were grouped in the order of their activations, so g_idx is shuffled."""

    def pack(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        columns = weight.shape[1]
        order = (
            torch.randperm(columns, generator=torch.Generator().manual_seed(1)) if ordered else torch.arange(columns)
        )
        numbers, scale, zero = _grouped(weight[:, order], group, zeros=True)
        meant = (numbers - zero.repeat_interleave(group, 1)) * scale.float().repeat_interleave(group, 1)
        back = order.argsort()
        stored_zero = zero - (0 if version == "gptq_v2" else 1)
        return {
            "qweight": _words(numbers[:, back]).T,
            "qzeros": _words(stored_zero.T),
            "scales": scale.T,
            "g_idx": (torch.arange(columns) // group)[back].int(),
        }, meant[:, back]

    return pack, {"quant_method": "gptq", "bits": 4, "group_size": group, "checkpoint_format": version}


def auto_round(group: int = 64) -> tuple[Packer, dict[str, Any]]:
    def pack(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        numbers, scale, zero = _grouped(weight, group, zeros=False)
        meant = (numbers - 8) * scale.float().repeat_interleave(group, 1)
        return {"qweight": _words(numbers).T, "qzeros": _words(zero.T - 1), "scales": scale.T}, meant

    kept = {"model.decoder.layers.0.self_attn.q_proj": {"bits": 16}}
    return pack, {"quant_method": "auto-round", "bits": 4, "group_size": group, "sym": True, "extra_config": kept}


def awq(group: int = 32) -> tuple[Packer, dict[str, Any]]:
    order = (0, 4, 1, 5, 2, 6, 3, 7)

    def pack(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        numbers, scale, zero = _grouped(weight, group, zeros=True)
        meant = (numbers - zero.repeat_interleave(group, 1)) * scale.float().repeat_interleave(group, 1)
        return {"qweight": _words(numbers.T, order), "qzeros": _words(zero.T, order), "scales": scale.T}, meant

    return pack, {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}


# --- GGUF, by ggml's own package ------------------------------------------------------------------------------------

LAYER_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "post_feedforward_layernorm_1": "post_ffw_norm_1",
    "pre_feedforward_layernorm_2": "pre_ffw_norm_2", "post_feedforward_layernorm_2": "post_ffw_norm_2",
    "post_feedforward_layernorm": "post_ffw_norm", "router.proj": "ffn_gate_inp",
}  # fmt: skip
OTHER_NAMES = {
    "router.scale": "ffn_gate_inp.scale", "router.per_expert_scale": "ffn_down_exps.scale",
    "experts.gate_up_proj": "ffn_gate_up_exps.weight", "experts.down_proj": "ffn_down_exps.weight",
    "layer_scalar": "layer_output_scale.weight", "encode_layer_scalar": "enc_layer_output_scale.weight",
    "embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight",
    "self_conditioning.pre_norm.weight": "self_cond_pre_norm.weight",
    "self_conditioning.gate_proj.weight": "self_cond_gate.weight",
    "self_conditioning.up_proj.weight": "self_cond_up.weight",
    "self_conditioning.down_proj.weight": "self_cond_down.weight",
}  # fmt: skip
GGUF_SIZES = {"hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256, "vocab_size": 97}


def gguf_name(weight: str) -> str:
    """A weight's name in the model -> the tensor's name in the file."""
    prefix = ""
    if weight.startswith("layers."):
        _, index, weight = weight.split(".", 2)
        prefix = f"blk.{index}."
    if weight in OTHER_NAMES:
        return prefix + OTHER_NAMES[weight]
    return prefix + LAYER_NAMES[weight.removesuffix(".weight")] + ".weight"


def write_gguf(file: Path, form: str, metadata: dict[str, Any] | None = None, stacked: bool = False) -> Foreign:
    """A tiny model in a GGUF file; matrices in ggml's format of this name, the rest in float32.

    stacked: gate and up matrices of the experts apart. metadata: entries to change; None takes one away.
    """
    gguf = pytest.importorskip("gguf")
    import numpy as np

    model = foreign_model(**GGUF_SIZES)
    config = model.config
    writer = gguf.GGUFWriter(file, "diffusion-gemma")
    sliding, full = config.layers
    tokens = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(32, 96)),
        "▁",
        "a",
        "b",
        "ab",
        "▁ab",
    ]
    tokens += ["<turn|>", "<|turn>", "<|tool_response>"]
    tokens += [f"<unused{i}>" for i in range(config.vocab_size - len(tokens))]
    kinds = [3] * 4 + [6] * 64 + [1] * 5 + [4, 3, 4] + [1] * (config.vocab_size - 76)
    own = {
        "block_count": 2, "context_length": 4096, "embedding_length": 256, "feed_forward_length": 256,
        "attention.head_count": 4, "attention.head_count_kv": [sliding.num_key_value_heads, full.num_key_value_heads],
        "attention.key_length": full.head_dim, "attention.value_length": full.head_dim,
        "attention.key_length_swa": sliding.head_dim, "attention.value_length_swa": sliding.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-6, "attention.sliding_window": config.sliding_window,
        "attention.sliding_window_pattern": [True, False], "expert_count": 4, "expert_used_count": 2,
        "expert_feed_forward_length": 256, "rope.freq_base": 1e6, "rope.freq_base_swa": 1e4,
        "rope.dimension_count": full.head_dim, "rope.dimension_count_swa": sliding.head_dim,
        "final_logit_softcapping": 30.0, "attention.causal": False, "vocab_size": config.vocab_size,
    }  # fmt: skip
    entries: dict[str, Any] = {f"diffusion-gemma.{name}": value for name, value in own.items()} | {
        "diffusion.canvas_length": config.canvas_length, "diffusion.eb_entropy_bound": 0.2,
        "tokenizer.ggml.model": "gemma4", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": ["a b", "▁ ab"], "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 3, "tokenizer.chat_template": "{{ messages[0].content }}",
    }  # fmt: skip
    for key, value in (entries | (metadata or {})).items():
        if value is not None:
            _add(writer, key, value)
    meant = {}
    kind = gguf.GGMLQuantizationType[form]

    def add(name: str, tensor: Tensor) -> Tensor:
        array = tensor.float().contiguous().numpy()
        if tensor.ndim < 2 or "inp" in name:
            writer.add_tensor(name, array)
            return tensor.float()
        whole = array.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
        own = kind if whole else gguf.GGMLQuantizationType.Q5_0  # as the converters do
        data = ggml_blocks(array, own)
        writer.add_tensor(name, data, raw_dtype=own)
        return torch.from_numpy(np.ascontiguousarray(gguf.quants.dequantize(data, own))).view(tensor.shape)

    for name, tensor in model.state_dict().items():
        theirs = gguf_name(name)
        if stacked and name.endswith("gate_up_proj"):
            gate, up = tensor.chunk(2, dim=1)
            halves = add(theirs.replace("gate_up", "gate"), gate), add(theirs.replace("gate_up", "up"), up)
            meant[name] = torch.cat(halves, dim=1)
        else:
            meant[name] = add(theirs, tensor)
    frequencies = np.where(np.arange(full.head_dim // 2) < full.head_dim // 8, 1.0, 1e30).astype(np.float32)
    writer.add_tensor("rope_freqs.weight", frequencies)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Foreign(file, meant)


def ggml_blocks(array: Any, kind: Any) -> Any:
    """An array in a block format; for those that the package can only read, random blocks with small scales."""
    gguf = pytest.importorskip("gguf")
    import numpy as np

    try:
        return gguf.quants.quantize(array, kind)
    except NotImplementedError:
        size, nbytes = gguf.GGML_QUANT_SIZES[kind]
        random = np.random.default_rng(array.size)
        blocks = random.integers(0, 256, (*array.shape[:-1], array.shape[-1] // size, nbytes), dtype=np.uint8)
        for at in (208,) if kind.name == "Q6_K" else (0, 2):
            halves = (random.standard_normal(blocks.shape[:-1]) * 1e-3).astype(np.float16)
            blocks[..., at : at + 2] = halves[..., None].view(np.uint8)
        return blocks.reshape(*array.shape[:-1], -1)


def _add(writer: Any, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    (writer.add_array if isinstance(value, list) else kinds[type(value)])(key, value)

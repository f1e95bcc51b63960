"""What a GGUF file's metadata says of the model, as the objects of config.json and generation_config.json; and which of
its tensors is which weight, under the keys of a checkpoint folder.

Keys and tensor names are those that llama.cpp's converter writes for `diffusion-gemma`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from scumble.checkpoint.files import Stored
from scumble.checkpoint.gguf.blocks import decode
from scumble.checkpoint.gguf.reader import GGUF
from scumble.checkpoint.names import DECODER, ENCODER
from scumble.checkpoint.raw import read_bytes
from scumble.checkpoint.schemes.assemble import Entry, StackedExperts
from scumble.config import MOST_LAYERS
from scumble.errors import CheckpointError, shown

ARCHITECTURES = ("diffusion-gemma", "diffusion_gemma")
# Metadata has one end id; the chat format ends answers with two more.
TURN_ENDS = ("<turn|>", "<|tool_response>")
LAYER_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2", "post_ffw_norm_2": "post_feedforward_layernorm_2",
    "post_ffw_norm": "post_feedforward_layernorm", "ffn_gate_inp": "router.proj",
}  # fmt: skip
LAYER_OTHERS = {
    "ffn_gate_inp.scale": "router.scale", "ffn_down_exps.scale": "router.per_expert_scale",
    "ffn_gate_up_exps.weight": "experts.gate_up_proj", "ffn_down_exps.weight": "experts.down_proj",
    "layer_output_scale.weight": "layer_scalar",
}  # fmt: skip
GLOBALS = {
    "token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight",
    "self_cond_pre_norm.weight": "self_conditioning.pre_norm.weight",
    "self_cond_gate.weight": "self_conditioning.gate_proj.weight",
    "self_cond_up.weight": "self_conditioning.up_proj.weight",
    "self_cond_down.weight": "self_conditioning.down_proj.weight",
}  # fmt: skip


class Metadata:
    """Typed access to metadata; errors name the file and the key."""

    def __init__(self, gguf: GGUF):
        self.file, self.raw = gguf.file, gguf.metadata
        found = self.raw.get("general.architecture")
        if found not in ARCHITECTURES:
            raise CheckpointError(
                f"{self.file}: general.architecture must be {ARCHITECTURES[0]!r}, found {shown(found)}; "
                "Scumble runs no other"
            )
        self.prefix = f"{found}."

    def own(self, key: str, default: Any = None) -> Any:
        """The architecture's own key."""
        return self.raw.get(self.prefix + key, default)

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.own(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
            raise self.wrong(self.prefix + key, "a whole number > 0", value)
        return value

    def listed(self, key: str, count: int, kind: type) -> list[Any]:
        """A list of `count` values, one a layer; a single value is for all."""
        value = self.own(key)
        values = value if isinstance(value, list) else [value] * count
        if len(values) != count or not all(isinstance(one, kind) for one in values):
            raise self.wrong(self.prefix + key, f"a list of {count} values of type {kind.__name__}", value)
        return values

    def wrong(self, key: str, what: str, value: Any) -> CheckpointError:
        return CheckpointError(f"{self.file}: metadata {key} must be {what}, found {shown(value)}")


def config_json(gguf: GGUF) -> dict[str, Any]:
    """The object that config.json would hold. Raises CheckpointError for another architecture, or what is missing."""
    data = Metadata(gguf)
    layers = data.whole("block_count")
    if layers > MOST_LAYERS:
        raise data.wrong(data.prefix + "block_count", f"in 1 … {MOST_LAYERS}", layers)
    sliding = data.listed("attention.sliding_window_pattern", layers, bool)
    heads = data.listed("attention.head_count_kv", layers, int)
    kinds = ["sliding_attention" if one else "full_attention" for one in sliding]
    full_dim, dim = data.whole("attention.key_length"), data.whole("attention.key_length_swa")
    canvas = gguf.metadata.get("diffusion.canvas_length")
    if not isinstance(canvas, int):
        raise data.wrong("diffusion.canvas_length", "a whole number", canvas)
    text = {
        "model_type": "diffusion_gemma_text",
        "vocab_size": _vocabulary(gguf, data),
        "hidden_size": data.whole("embedding_length"),
        "intermediate_size": data.whole("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": data.whole("attention.head_count"),
        "num_key_value_heads": heads[0],
        "head_dim": dim,
        "layer_types": kinds,
        "per_layer_config": {
            str(i): {"head_dim": dim if sliding[i] else full_dim, "num_key_value_heads": heads[i]}
            for i in range(layers)
        },
        "num_experts": data.whole("expert_count"),
        "top_k_experts": data.whole("expert_used_count"),
        "moe_intermediate_size": data.whole("expert_feed_forward_length"),
        "sliding_window": data.whole("attention.sliding_window"),
        "max_position_embeddings": data.whole("context_length"),
        "rms_norm_eps": _rounded(data.own("attention.layer_norm_rms_epsilon", 1e-6)),
        "final_logit_softcapping": data.own("final_logit_softcapping", 30.0),
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": data.own("rope.freq_base_swa", 1e4)},
            "full_attention": {
                "rope_type": "proportional",
                "rope_theta": data.own("rope.freq_base", 1e6),
                "partial_rotary_factor": _rotated(gguf),
            },
        },
        "bos_token_id": gguf.metadata.get("tokenizer.ggml.bos_token_id", 2),
        "pad_token_id": gguf.metadata.get("tokenizer.ggml.padding_token_id", 0),
        "tie_word_embeddings": True,
    }
    return {
        "model_type": "diffusion_gemma",
        "canvas_length": canvas,
        "eos_token_id": _ends(gguf, data),
        "image_token_id": None,
        "text_config": text,
        "tie_word_embeddings": True,
    }


def generation_json(gguf: GGUF) -> dict[str, Any]:
    """The object that generation_config.json would hold: what the file says of the sampler."""
    names = {
        "max_steps": "max_denoising_steps", "t_min": "t_min", "t_max": "t_max",
        "stability_threshold": "stability_threshold", "confidence_threshold": "confidence_threshold",
    }  # fmt: skip
    found = {ours: gguf.metadata.get(f"diffusion.eb_{theirs}") for theirs, ours in names.items()}
    out: dict[str, Any] = {name: _rounded(value) for name, value in found.items() if value is not None}
    if (bound := gguf.metadata.get("diffusion.eb_entropy_bound")) is not None:
        out["sampler_config"] = {"entropy_bound": _rounded(bound), "_cls_name": "EntropyBoundSamplerConfig"}
    return out


def _rounded(value: Any) -> Any:
    """A float32 as the decimal number that was meant: 0.1, not 0.10000000149."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _vocabulary(gguf: GGUF, data: Metadata) -> int:
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is not None and len(embedding.shape) == 2:
        return embedding.shape[0]
    return data.whole("vocab_size")


def _ends(gguf: GGUF, data: Metadata) -> list[int]:
    """The file's end id, and those of the chat format where the vocabulary has them."""
    first = gguf.metadata.get("tokenizer.ggml.eos_token_id", 1)
    if isinstance(first, bool) or not isinstance(first, int):
        raise data.wrong("tokenizer.ggml.eos_token_id", "a whole number", first)
    tokens = gguf.metadata.get("tokenizer.ggml.tokens")
    known = tokens if isinstance(tokens, list) else []
    more = [known.index(token) for token in TURN_ENDS if token in known]
    return [first, *(one for one in more if one != first)]


def _rotated(gguf: GGUF) -> float:
    """The share of a full layer's dimensions that rotate: where `rope_freqs` does not divide by something huge."""
    stored = gguf.tensors.get("rope_freqs.weight")
    if stored is None or stored.dtype != "F32":
        return 0.25
    divisors = decode("F32", read_bytes(stored), stored.shape)
    return float((divisors < 1e6).float().mean())


def weight_entries(gguf: GGUF) -> dict[str, Entry]:
    """Tensors of the file under the keys of a checkpoint folder; unknown ones keep their own name.

    `rope_freqs` is left out: it follows from the configuration.
    """
    out: dict[str, Entry] = {}
    for name, stored in gguf.tensors.items():
        if name != "rope_freqs.weight":
            key = checkpoint_key(name)
            out[key] = replace(stored, key=key)
    _stack_experts(out)
    return out


def checkpoint_key(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.decoder.layers.3.self_attn.q_proj.weight`."""
    if name in GLOBALS:
        return DECODER + GLOBALS[name]
    if not name.startswith("blk."):
        return name
    _, index, rest = name.split(".", 2) if name.count(".") >= 2 else ("", "", "")
    if not index.isdecimal():
        return name
    layer = f"layers.{index}."
    if rest == "enc_layer_output_scale.weight":
        return ENCODER + layer + "layer_scalar"
    if rest in LAYER_OTHERS:
        return DECODER + layer + LAYER_OTHERS[rest]
    stem, _, last = rest.rpartition(".")
    return DECODER + layer + LAYER_NAMES[stem] + ".weight" if last == "weight" and stem in LAYER_NAMES else name


def _stack_experts(entries: dict[str, Entry]) -> None:
    """Some converters keep the experts' gate and up matrices apart; they become one weight, gate first."""
    for name in [key for key in entries if key.endswith(".ffn_gate_exps.weight")]:
        gate, up = entries[name], entries.get(name.replace("gate", "up"))
        if not isinstance(gate, Stored) or not isinstance(up, Stored):
            continue
        if gate.shape != up.shape or len(gate.shape) != 3:
            raise CheckpointError(f"{gate.file}: {name} and its up matrix have shapes {gate.shape} and {up.shape}")
        key = f"{DECODER}layers.{name.split('.')[1]}.experts.gate_up_proj"
        if key not in entries:
            entries[key] = StackedExperts(key, gate, up)
            del entries[name], entries[name.replace("gate", "up")]


def is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"

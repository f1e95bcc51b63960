"""The shape of a model, read once from `config.json` and validated once.

Both spellings of the file are understood: the release's (`global_head_dim`, `num_global_key_value_heads`) and the one
that `transformers` writes (`per_layer_config`). Values that a file leaves out are the class defaults of
`DiffusionGemmaTextConfig` / `DiffusionGemmaConfig`, because `transformers` omits what equals a default.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scumble.errors import CheckpointError, shown
from scumble.reading import read_json_file

MODEL_TYPE = "diffusion_gemma"
LayerKind = Literal["sliding_attention", "full_attention"]

# Far beyond any model of this architecture: a larger number is damage, and is refused before anything is allocated.
MOST_LAYERS = 1000
LARGEST = {
    "vocab_size": 2**24,
    "hidden_size": 2**17,
    "intermediate_size": 2**20,
    "num_attention_heads": 2**12,
    "num_experts": 2**14,
    "top_k_experts": 2**14,
    "moe_intermediate_size": 2**20,
    "sliding_window": 2**31 - 1,
    "max_position_embeddings": 2**31 - 1,
    "canvas_length": 2**16,
}


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding of one kind of layer."""

    kind: Literal["default", "proportional"]
    theta: float
    partial_rotary_factor: float = 1.0


@dataclass(frozen=True)
class LayerConfig:
    """What differs from layer to layer: the kind of attention and its head sizes."""

    kind: LayerKind
    head_dim: int
    num_key_value_heads: int

    @property
    def is_sliding(self) -> bool:
        return self.kind == "sliding_attention"


@dataclass(frozen=True)
class ModelConfig:
    """The text model of a DiffusionGemma checkpoint. Sizes are counts of elements; token ids are vocabulary indices."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_experts: int
    top_k_experts: int
    moe_intermediate_size: int
    layers: tuple[LayerConfig, ...]
    sliding_rope: Rope = Rope("default", 1e4)
    full_rope: Rope = Rope("proportional", 1e6, 0.25)
    sliding_window: int = 512
    max_position_embeddings: int = 131_072
    canvas_length: int = 256
    rms_norm_eps: float = 1e-6
    final_logit_softcapping: float = 30.0
    eos_token_ids: tuple[int, ...] = (1,)
    bos_token_id: int | None = 2
    pad_token_id: int | None = 0
    image_token_id: int | None = 258_880
    use_bidirectional_attention: str | None = None
    source: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def rope(self, layer: LayerConfig) -> Rope:
        return self.sliding_rope if layer.is_sliding else self.full_rope

    def __post_init__(self) -> None:
        for name, largest in LARGEST.items():
            _check_whole(f"config.json: {name}", getattr(self, name), 1, largest)
        if not self.layers:
            raise CheckpointError("config.json: num_hidden_layers must be ≥ 1, found 0")
        if self.top_k_experts > self.num_experts:
            raise CheckpointError(
                f"config.json: top_k_experts must be ≤ num_experts ({self.num_experts}), found {self.top_k_experts}"
            )
        for index, layer in enumerate(self.layers):
            where = f"config.json, layer {index}"
            if layer.kind not in ("sliding_attention", "full_attention"):
                raise CheckpointError(
                    f"{where}: layer type must be sliding_attention or full_attention, found {shown(layer.kind)}"
                )
            _check_whole(f"{where}: head_dim", layer.head_dim, 2, 2**13)
            if layer.head_dim % 2:
                raise CheckpointError(f"{where}: head_dim must be even, found {layer.head_dim}")
            heads = layer.num_key_value_heads
            _check_whole(f"{where}: num_key_value_heads", heads, 1, self.num_attention_heads)
            if self.num_attention_heads % heads:
                raise CheckpointError(
                    f"{where}: num_key_value_heads must divide num_attention_heads "
                    f"({self.num_attention_heads}), found {heads}"
                )
        for name in ("rms_norm_eps", "final_logit_softcapping"):
            _check_real(f"config.json: {name}", getattr(self, name))
        for token in self.eos_token_ids:
            _check_whole("config.json: eos_token_id", token, 0, self.vocab_size - 1)
        for name in ("bos_token_id", "pad_token_id", "image_token_id"):  # may lie outside a small model's vocabulary
            if getattr(self, name) is not None:
                _check_whole(f"config.json: {name}", getattr(self, name), 0, 2**31 - 1)
        # "vision" lets tokens of one image see each other; text, which is all that comes in here, is causal either way.
        if self.use_bidirectional_attention not in (None, "vision"):
            raise CheckpointError(
                f"config.json: use_bidirectional_attention must be null or 'vision' for text generation, "
                f"found {shown(self.use_bidirectional_attention)}"
            )


def _check_whole(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise CheckpointError(f"{name} must be a whole number in {low} … {high}, found {shown(value)}")


def _check_real(name: str, value: Any) -> None:
    """A number > 0 that float32 can hold; NaN fails both comparisons."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1e38:
        raise CheckpointError(f"{name} must be a finite number > 0, found {shown(value)}")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a CheckpointError names the file when it is missing, not JSON or not an object."""
    try:
        value = read_json_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; a checkpoint folder needs a {path.name}") from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, not JSON, too deep, or thousands of digits
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, found {type(value).__name__}")
    return value


def parse_model_config(raw: dict[str, Any]) -> ModelConfig:
    """Build a ModelConfig from the object in `config.json`.

    Raises CheckpointError, with the name, the value and the allowed range, for anything this engine cannot run.
    """
    found = raw.get("model_type")
    if found != MODEL_TYPE:
        raise CheckpointError(
            f"config.json: model_type must be {MODEL_TYPE!r}, found {shown(found)}; Scumble runs no other"
        )
    text = _object(raw, "text_config")
    if text.get("attention_bias"):
        raise CheckpointError("config.json: attention_bias must be false, found true")
    activation = text.get("hidden_activation", "gelu_pytorch_tanh")
    if activation != "gelu_pytorch_tanh":
        raise CheckpointError(f"config.json: hidden_activation must be 'gelu_pytorch_tanh', found {shown(activation)}")
    if not raw.get("tie_word_embeddings", True) or not text.get("tie_word_embeddings", True):
        raise CheckpointError("config.json: tie_word_embeddings must be true; untied checkpoints are not supported")
    count = text.get("num_hidden_layers", 30)
    _check_whole("config.json: num_hidden_layers", count, 1, MOST_LAYERS)
    ropes = _object(text, "rope_parameters")
    return ModelConfig(
        vocab_size=text.get("vocab_size", 262_144),
        hidden_size=text.get("hidden_size", 2304),
        intermediate_size=text.get("intermediate_size", 9216),
        num_attention_heads=text.get("num_attention_heads", 8),
        num_experts=text.get("num_experts"),  # type: ignore[arg-type]  # no default: validated below
        top_k_experts=text.get("top_k_experts"),  # type: ignore[arg-type]
        moe_intermediate_size=text.get("moe_intermediate_size"),  # type: ignore[arg-type]
        layers=_layers(text, count),
        sliding_rope=_rope(_object(ropes, "sliding_attention"), Rope("default", 1e4)),
        full_rope=_rope(_object(ropes, "full_attention"), Rope("proportional", 1e6, 0.25)),
        sliding_window=text.get("sliding_window", 512),
        max_position_embeddings=text.get("max_position_embeddings", 131_072),
        canvas_length=raw.get("canvas_length", 256),
        rms_norm_eps=text.get("rms_norm_eps", 1e-6),
        final_logit_softcapping=text.get("final_logit_softcapping", 30.0),
        eos_token_ids=_ids(raw.get("eos_token_id", text.get("eos_token_id", 1))),
        bos_token_id=text.get("bos_token_id", 2),
        pad_token_id=text.get("pad_token_id", 0),
        image_token_id=raw.get("image_token_id", 258_880),
        use_bidirectional_attention=text.get("use_bidirectional_attention"),
        source=raw,
    )


def _object(source: dict[str, Any], name: str) -> dict[str, Any]:
    """A nested object; {} where it is null or missing."""
    value = source.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CheckpointError(f"config.json: {name} must be an object, found {shown(value)}")
    return value


def _ids(value: Any) -> tuple[int, ...]:
    """`eos_token_id` is a number, a list, or null."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def _rope(raw: dict[str, Any], default: Rope) -> Rope:
    if not raw:
        return default
    kind = raw.get("rope_type", default.kind)
    if kind not in ("default", "proportional"):
        raise CheckpointError(f"config.json: rope_type must be 'default' or 'proportional', found {shown(kind)}")
    theta, factor = raw.get("rope_theta", default.theta), raw.get("partial_rotary_factor", 1.0)
    _check_real("config.json: rope_theta", theta)
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 <= factor <= 1:
        raise CheckpointError(f"config.json: partial_rotary_factor must lie in 0 … 1, found {shown(factor)}")
    if kind == "proportional" and raw.get("factor", 1.0) != 1.0:
        raise CheckpointError(f"config.json: rope factor must be 1, found {shown(raw['factor'])}")
    if kind == "default" and factor != 1.0:
        raise CheckpointError(f"config.json: partial_rotary_factor must be 1 for rope_type 'default', found {factor!r}")
    return Rope(kind, float(theta), float(factor))


def _layers(text: dict[str, Any], count: int) -> tuple[LayerConfig, ...]:
    # Released pattern: five sliding layers, then one full; the last layer is always full.
    kinds = text.get("layer_types")
    if kinds is None:
        kinds = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(count)]
    if not isinstance(kinds, list) or len(kinds) != count:
        found = len(kinds) if isinstance(kinds, list) else shown(kinds)
        raise CheckpointError(f"config.json: layer_types must name {count} layers, found {found}")
    kinds = [*kinds[:-1], "full_attention"]

    head_dim, kv_heads = text.get("head_dim", 256), text.get("num_key_value_heads", 4)
    if "per_layer_config" in text:
        overrides = _layer_overrides(text, count)
    else:
        full = {"head_dim": text.get("global_head_dim", 512)}
        if text.get("num_global_key_value_heads") is not None:
            full["num_key_value_heads"] = text["num_global_key_value_heads"]
        overrides = {i: full for i, kind in enumerate(kinds) if kind == "full_attention"}
    layers = []
    for index, kind in enumerate(kinds):
        own = overrides.get(index, {})
        layers.append(LayerConfig(kind, own.get("head_dim", head_dim), own.get("num_key_value_heads", kv_heads)))
    return tuple(layers)


def _layer_overrides(text: dict[str, Any], count: int) -> dict[int, dict[str, Any]]:
    """`per_layer_config` by layer. Keys are layer numbers; `transformers` pads them with zeros to one width ("05")."""
    raw = _object(text, "per_layer_config")
    out: dict[int, dict[str, Any]] = {}
    for key in raw:
        index = int(key) if key.isascii() and key.isdigit() and len(key) <= 10 else count
        if index >= count:
            raise CheckpointError(
                f"config.json: per_layer_config must have layer numbers 0 … {count - 1} as keys, found {shown(key)}"
            )
        own = _object(raw, key)
        if out.setdefault(index, own) != own:
            raise CheckpointError(f"config.json: per_layer_config says two things about layer {index}")
        for name, value in own.items():
            if name not in ("head_dim", "num_key_value_heads") and value != text.get(name):
                raise CheckpointError(
                    f"config.json: per_layer_config may change head_dim and num_key_value_heads of a layer, "
                    f"found {name} {shown(value)} for layer {index}; Scumble has no other layers that differ"
                )
    return out


def write_model_config(config: ModelConfig, dtype_name: str) -> dict[str, Any]:
    """The object for `config.json`, in the release's spelling, which `transformers` reads too.

    Fields this engine does not interpret (the vision tower's, for instance) are carried over from `config.source`.
    """
    full = next(layer for layer in config.layers if not layer.is_sliding)
    sliding = next((layer for layer in config.layers if layer.is_sliding), full)
    uniform = all(layer == (sliding if layer.is_sliding else full) for layer in config.layers)
    eos: Any = list(config.eos_token_ids) if len(config.eos_token_ids) != 1 else config.eos_token_ids[0]
    text: dict[str, Any] = dict(config.source.get("text_config") or {})
    text.pop("per_layer_config", None)
    text.update(
        model_type="diffusion_gemma_text",
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=len(config.layers),
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=sliding.num_key_value_heads,
        head_dim=sliding.head_dim,
        layer_types=[layer.kind for layer in config.layers],
        num_experts=config.num_experts,
        top_k_experts=config.top_k_experts,
        moe_intermediate_size=config.moe_intermediate_size,
        sliding_window=config.sliding_window,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        final_logit_softcapping=config.final_logit_softcapping,
        rope_parameters={
            "sliding_attention": _rope_json(config.sliding_rope),
            "full_attention": _rope_json(config.full_rope),
        },
        bos_token_id=config.bos_token_id,
        pad_token_id=config.pad_token_id,
        eos_token_id=eos,
        use_bidirectional_attention=config.use_bidirectional_attention,
        hidden_activation="gelu_pytorch_tanh",
        attention_bias=False,
        tie_word_embeddings=True,
        dtype=dtype_name,
    )
    if uniform:
        text.update(global_head_dim=full.head_dim, num_global_key_value_heads=full.num_key_value_heads)
    else:
        for name in ("global_head_dim", "num_global_key_value_heads"):
            text.pop(name, None)
        text["per_layer_config"] = {
            str(i): {"head_dim": layer.head_dim, "num_key_value_heads": layer.num_key_value_heads}
            for i, layer in enumerate(config.layers)
        }
    raw = {name: value for name, value in config.source.items() if name != "text_config"}
    raw.update(
        model_type=MODEL_TYPE,
        architectures=["DiffusionGemmaForBlockDiffusion"],
        text_config=text,
        canvas_length=config.canvas_length,
        image_token_id=config.image_token_id,
        eos_token_id=eos,
        tie_word_embeddings=True,
        dtype=dtype_name,
    )
    return raw


def _rope_json(rope: Rope) -> dict[str, Any]:
    out: dict[str, Any] = {"rope_type": rope.kind, "rope_theta": rope.theta}
    if rope.partial_rotary_factor != 1.0 or rope.kind == "proportional":
        out["partial_rotary_factor"] = rope.partial_rotary_factor
    return out

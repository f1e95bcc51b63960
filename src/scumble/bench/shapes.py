"""Models by name, with random weights: enough to measure speed, which does not depend on what a model has learned.

Nearly: random weights route tokens evenly over the experts and never become confident, so adaptive stopping cannot be
measured on them. Weights are made in the wanted dtype, without a float32 copy of anything large.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from scumble.config import LayerConfig, ModelConfig
from scumble.errors import InvalidRequest, shown
from scumble.formats import Format, build, sizes
from scumble.model import Transformer
from scumble.model.transformer import Layer
from scumble.ops import choose

EMBEDDED = "embedded"  # not a shape: the trained model that comes with the package
POOL = 4_194_301  # a prime: repeated through a matrix, the pool gives no two rows alike


def _layers(count: int, sliding: LayerConfig, full: LayerConfig) -> tuple[LayerConfig, ...]:
    """Five sliding, then one full, over and over."""
    return tuple(full if (index + 1) % 6 == 0 else sliding for index in range(count))


SMALL = ModelConfig(
    vocab_size=32_768, hidden_size=768, intermediate_size=1024, num_attention_heads=8,
    num_experts=32, top_k_experts=4, moe_intermediate_size=256,
    layers=_layers(12, LayerConfig("sliding_attention", 128, 4), LayerConfig("full_attention", 256, 2)),
    sliding_window=1024, max_position_embeddings=131_072, canvas_length=256,
)  # fmt: skip

RELEASE = ModelConfig(
    vocab_size=262_144, hidden_size=2816, intermediate_size=2112, num_attention_heads=16,
    num_experts=128, top_k_experts=8, moe_intermediate_size=704,
    layers=_layers(30, LayerConfig("sliding_attention", 256, 8), LayerConfig("full_attention", 512, 2)),
    sliding_window=1024, max_position_embeddings=262_144, canvas_length=256, eos_token_ids=(1, 106, 50),
)  # fmt: skip

# For tests and for a first look: runs anywhere in a second, and says nothing about speed.
TINY = ModelConfig(
    vocab_size=512, hidden_size=64, intermediate_size=64, num_attention_heads=4,
    num_experts=8, top_k_experts=2, moe_intermediate_size=32,
    layers=_layers(6, LayerConfig("sliding_attention", 16, 2), LayerConfig("full_attention", 32, 1)),
    sliding_window=64, max_position_embeddings=16_384, canvas_length=32,
)  # fmt: skip

SHAPES = {"small-315m": SMALL, "release": RELEASE, "wide": replace(SMALL, vocab_size=262_144), "tiny": TINY}


def shape(name: str, layers: int | None = None) -> ModelConfig:
    """The config of a named shape, cut to `layers` layers when given (the last one is always full attention)."""
    if name not in SHAPES:
        raise InvalidRequest(f"--shape must be one of {', '.join((*SHAPES, EMBEDDED))}, found {shown(name)}")
    config = SHAPES[name]
    if layers is None:
        return config
    if not 1 <= layers <= len(config.layers):
        raise InvalidRequest(f"--layers must lie in 1 … {len(config.layers)} for {name}, found {layers}")
    full = config.layers[-1]
    return replace(config, layers=(*config.layers[: layers - 1], full))


def weight_bytes(config: ModelConfig, dtype: str, on_card: bool = False) -> float:
    """Bytes of all weights in one number format."""
    with torch.device("meta"):
        shapes = {name: tuple(weight.shape) for name, weight in Transformer(config).named_parameters()}
    return sizes.weight_bytes(shapes, dtype, on_card)


def random_model(
    config: ModelConfig, dtype: torch.dtype, seed: int, device: torch.device, form: Format | None = None
) -> Transformer:
    """A model with seeded random weights, scaled so that activations keep their size from layer to layer.

    form: rounded to a number format layer by layer, so that no more than one is there in `dtype`."""
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    model.use(choose(device, dtype, config).ops)
    build.check(form, model.ops, device)
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(POOL, generator=generator).to(dtype).to(device)  # the same numbers on every device
    for part in (model.embed_tokens, *model.layers, model.norm, model.self_conditioning):
        _randomize(part.to_empty(device=device), pool, generator, len(config.layers))
        if form is not None and isinstance(part, Layer):
            model.convert(form, part)
    model.eval().requires_grad_(False)
    if form is not None:
        return model.convert(form, model)
    return model.convert(None) if model.ops.packs else model


@torch.no_grad()
def _randomize(part: nn.Module, pool: Tensor, generator: torch.Generator, layers: int) -> None:
    for name, weight in part.named_parameters():
        if weight.ndim == 1:
            weight.fill_(_vector(name, weight, layers))
        else:
            _fill(weight, pool, int(torch.randint(POOL, (1,), generator=generator)))
    for name, buffer in part.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.fill_(1.0)


def _vector(name: str, weight: Tensor, layers: int) -> float:
    """Norms and scales. Scores are not divided by √K, so query and key norms bring that in; branches sum to one."""
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return weight.shape[0] ** -0.25
    if name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
        return (2 * layers) ** -0.5
    if name.endswith("router.scale"):
        return weight.shape[0] ** 0.5  # undoes the router's 1/√D: scores of unit size, as a trained router has
    return 1.0


def _fill(weight: Tensor, pool: Tensor, offset: int) -> None:
    """N(0, 1/fan_in), the pool repeated from `offset` on: copying is many times quicker than drawing."""
    flat, scaled = weight.view(-1), pool.roll(-offset).mul_(weight.shape[-1] ** -0.5)
    for start in range(0, flat.shape[0], POOL):
        part = flat[start : start + POOL]
        part.copy_(scaled[: part.shape[0]])


def random_prompt(config: ModelConfig, tokens: int, seed: int) -> list[int]:
    """Uniform random ids that are not end-of-sequence ids."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(config.vocab_size, (2 * tokens + 64,), generator=generator).tolist()
    return [token for token in ids if token not in config.eos_token_ids][:tokens]

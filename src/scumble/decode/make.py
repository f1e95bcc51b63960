"""How a request is made: what a caller asks, checked against the model; what is left open, filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, TypeVar

import torch
from torch import Tensor

from scumble.config import ModelConfig
from scumble.decode.constraint import Constraint, OneOf, Pins, together
from scumble.decode.request import Request
from scumble.decode.select import AsDenoised, Likeliest
from scumble.diffusion import EntropyBound, LinearTemperature, Noise, SeededNoise, StableAndConfident
from scumble.errors import InvalidRequest, PromptTooLong, shown
from scumble.settings import RELEASE_DEFAULTS, GenerationConfig

T = TypeVar("T")

SHORTEST_CANVAS = 16  # where canvas_length="auto" begins


def make_request(
    prompt: Sequence[int] | Tensor,
    config: GenerationConfig,
    checkpoint_defaults: Mapping[str, Any],
    model: ModelConfig,
    noise: Noise | None = None,
    draft: Sequence[int] | Tensor | None = None,
    pinned: Mapping[int, int] | None = None,
    first: Sequence[int] | Tensor | None = None,
    constraint: Constraint | None = None,
    typed: str = "",
) -> Request:
    """Check a request against the model and fill in what it leaves open; raises InvalidRequest or PromptTooLong.

    pinned: answer position -> id. first: ids of which one begins the answer; None: any. constraint: any other.
    """
    ids = _ids("prompt", prompt, model.vocab_size)
    if ids.shape[0] == 0:
        raise InvalidRequest("the prompt is empty; give at least one token")
    full = resolve(config, checkpoint_defaults, model, ids.shape[0])
    pinned = _pinned(pinned, _set(full.max_new_tokens), model.vocab_size)
    if full.decoder == "autoregressive" and (pinned or draft is not None):
        raise InvalidRequest("decoder='autoregressive' has no canvas: draft and pinned need decoder='diffusion'")
    parts = [] if constraint is None else [constraint]
    if pinned:
        parts.append(Pins(pinned))
    if first is not None:
        firsts = _ids("first", first, model.vocab_size).tolist()
        if not firsts:
            raise InvalidRequest(
                "first is empty, so nothing could begin the answer; give at least one id, or None for any"
            )
        parts.append(OneOf(tuple(firsts)))
    scale = full.temperature or 1.0  # 0 keeps the schedule's scale and proposes the argmax instead
    is_read = full.logprobs is not None or _set(full.best_of) > 1 or _set(full.revisions) > 0
    longest = full.canvas_length if isinstance(full.canvas_length, int) else model.canvas_length
    return Request(
        prompt=ids,
        config=full,
        vocab=model.vocab_size,
        max_new_tokens=_set(full.max_new_tokens),
        shortest=longest if isinstance(full.canvas_length, int) else min(SHORTEST_CANVAS, longest),
        longest=longest,
        eos_ids=frozenset() if full.ignore_eos else frozenset(model.eos_token_ids),
        pad_id=None if full.ignore_eos or model.pad_token_id in model.eos_token_ids else model.pad_token_id,
        silent_ids=frozenset({*model.eos_token_ids, model.pad_token_id} - {None}),
        schedule=LinearTemperature(_set(full.t_min) * scale, _set(full.t_max) * scale, _set(full.max_denoising_steps)),
        sampler=EntropyBound(_set(full.entropy_bound)),
        stopping=StableAndConfident(
            _set(full.stability_threshold), _set(full.confidence_threshold), _set(full.stability)
        ),
        selector=Likeliest(_set(full.revisions)) if is_read else AsDenoised(),
        noises=_noises(noise, full),
        constraint=together(parts),
        draft=() if draft is None else _drafted(draft, _set(full.max_new_tokens), model),
        typed=typed,
    )


def _drafted(draft: Sequence[int] | Tensor, room: int, model: ModelConfig) -> tuple[int, ...]:
    """The draft's ids. What lies behind the answer's last position would have no effect: it is refused, but for ends
    and pads, which ask for nothing."""
    ids = tuple(_ids("draft", draft, model.vocab_size).tolist())
    nothing = {*model.eos_token_ids, model.pad_token_id}
    length = max((place + 1 for place, token in enumerate(ids) if token not in nothing), default=0)
    if length > room:
        raise InvalidRequest(
            f"the draft has {length} ids, but max_new_tokens leaves room for {room}; "
            "raise max_new_tokens, or shorten the draft"
        )
    return ids


def _noises(noise: Noise | None, full: GenerationConfig) -> tuple[Noise, ...]:
    candidates = _set(full.best_of)
    if noise is None:
        return tuple(SeededNoise(_set(full.seed), candidate) for candidate in range(candidates))
    if candidates > 1:
        raise InvalidRequest(f"noise is for one candidate alone and needs best_of=1, found best_of={candidates}")
    return (noise,)


def resolve(
    config: GenerationConfig, checkpoint_defaults: Mapping[str, Any], model: ModelConfig, prompt_tokens: int
) -> GenerationConfig:
    """Every setting as a prompt of that many tokens will run with it."""
    room = model.max_position_embeddings - prompt_tokens
    if room < 1:
        raise PromptTooLong(
            f"the prompt has {prompt_tokens} tokens; the model's context holds {model.max_position_embeddings}, "
            f"and at least one is needed for the answer; shorten the prompt"
        )
    asked = config.max_new_tokens
    if asked is not None and asked > room:
        raise PromptTooLong(
            f"max_new_tokens must be ≤ {room} for this prompt ({prompt_tokens} tokens of a context of "
            f"{model.max_position_embeddings}), found {asked}"
        )
    full = config.merged(checkpoint_defaults).merged(RELEASE_DEFAULTS)
    if full.decoder == "autoregressive":
        if config.best_of not in (None, 1):
            raise InvalidRequest(
                f"best_of compares candidates of a canvas and needs decoder='diffusion', found best_of={config.best_of}"
            )
        if config.revisions not in (None, 0):
            raise InvalidRequest(
                f"revisions correct a canvas and need decoder='diffusion', found revisions={config.revisions}"
            )
        full = replace(full, best_of=1, revisions=0)  # the checkpoint's are meant for canvases
    if (full.top_k is not None or full.top_p is not None) and full.decoder == "diffusion":
        raise InvalidRequest("top_k and top_p apply to decoder='autoregressive' only; diffusion uses entropy_bound")
    length = model.canvas_length if full.canvas_length is None else full.canvas_length
    if isinstance(length, int) and length > model.canvas_length:
        raise InvalidRequest(f"canvas_length must lie in 1 … {model.canvas_length} for this model, found {length}")
    return replace(full, max_new_tokens=min(_set(full.max_new_tokens), room), canvas_length=length)


def _set(value: T | None) -> T:
    assert value is not None, "RELEASE_DEFAULTS lacks a name"
    return value


def _pinned(pinned: Mapping[int, int] | None, room: int, vocab: int) -> dict[int, int]:
    """Positions in 0 … room-1 and ids in 0 … vocab-1, both checked."""
    if pinned is None:
        return {}
    if not isinstance(pinned, Mapping):
        raise InvalidRequest(f"pinned must map answer positions to token ids, {{3: 17}}, found {shown(pinned)}")
    out = {}
    for position, token in pinned.items():
        for name, value, end, why in (
            ("pinned positions", position, room, "max_new_tokens - 1"),
            ("pinned ids", token, vocab, "the vocabulary"),
        ):
            if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= value < end:
                raise InvalidRequest(f"{name} must be whole numbers in 0 … {end - 1} ({why}), found {shown(value)}")
        out[int(position)] = int(token)
    return out


def _ids(name: str, ids: Sequence[int] | Tensor, vocab: int) -> Tensor:
    try:
        tensor = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InvalidRequest(f"{name} must be a flat list of token ids, found {type(ids).__name__}") from None
    if tensor.numel() == 0:
        return torch.zeros(0, dtype=torch.int64)
    if tensor.ndim != 1 or tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise InvalidRequest(f"{name} must be a flat list of token ids, found {kind} of shape {list(tensor.shape)}")
    low, high = int(tensor.min()), int(tensor.max())
    if low < 0 or high >= vocab:
        raise InvalidRequest(
            f"{name} ids must lie in 0 … {vocab - 1} (the vocabulary), found {low if low < 0 else high}"
        )
    return tensor.to(torch.int64)

"""A request as the engine sees it: ids, and settings in which nothing is left unset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, TypeVar

import torch
from torch import Tensor

from scumble.config import ModelConfig
from scumble.diffusion import EntropyBound, LinearTemperature, Noise, SeededNoise, StableAndConfident
from scumble.errors import InvalidRequest, PromptTooLong, shown
from scumble.settings import RELEASE_DEFAULTS, CommitRule, Decoder, GenerationConfig, Preference

T = TypeVar("T")
Check = Callable[[Sequence[int], bool], bool]


SHORTEST_CANVAS = 16  # where canvas_length="auto" begins


@dataclass(frozen=True)
class CanvasLength:
    """How long canvas number `index` is: `first`, then twice as long each time, up to `most`."""

    first: int
    most: int

    def __call__(self, index: int) -> int:
        return min(self.first << min(index, 32), self.most)


@dataclass(frozen=True)
class Settings:
    """A GenerationConfig after every unset name was filled in and every name checked against the model.

    eos_ids: what ends an answer; none where the request ignores them. pad_id: what stands where a canvas holds nothing;
    None where it is to count like any id. silent_ids: ends and pads, in any case; nothing of them is text.
    """

    max_new_tokens: int
    canvas_length: CanvasLength
    decoder: Decoder
    temperature: float
    schedule: LinearTemperature
    positions_per_pass: int | None
    sampler: EntropyBound
    stopping: StableAndConfident
    commit: CommitRule
    eos_ids: frozenset[int]
    pad_id: int | None
    silent_ids: frozenset[int]
    stop: tuple[str, ...]
    seed: int
    best_of: int
    revisions: int
    prefer: Preference
    top_k: int | None
    top_p: float | None
    logprobs: int | None

    def passes_at_most(self, length: int) -> int:
        """Of a canvas of that length."""
        if self.positions_per_pass is None:
            return self.schedule.passes
        return min(self.schedule.passes, -(-length // self.positions_per_pass))

    def schedule_of(self, length: int) -> LinearTemperature:
        """A canvas of that length goes through all temperatures, in as many passes as it has."""
        return replace(self.schedule, passes=self.passes_at_most(length))


@dataclass(frozen=True)
class Request:
    """prompt: ids [n ≥ 1]. noises: one a candidate (see `best_of`). draft: ids that the answer starts from, from its
    position 0. pinned: position -> id. first: ids [k ≥ 1] of which one begins the answer; None: any. check: whether
    an answer's ids so far, ended or not, are as the request prefers them; None: it prefers none.

    Positions count from the start of the answer, across canvases.
    """

    prompt: Tensor
    settings: Settings
    noises: tuple[Noise, ...]
    draft: Tensor | None = None
    pinned: Mapping[int, int] = field(default_factory=dict)
    first: Tensor | None = None
    check: Check | None = None


def make_request(
    prompt: Sequence[int] | Tensor,
    config: GenerationConfig,
    checkpoint_defaults: Mapping[str, Any],
    model: ModelConfig,
    noise: Noise | None = None,
    draft: Sequence[int] | Tensor | None = None,
    pinned: Mapping[int, int] | None = None,
    first: Sequence[int] | Tensor | None = None,
    check: Callable[[Settings], Check | None] = lambda settings: None,
) -> Request:
    """Check a request against the model and fill in what it leaves open; raises InvalidRequest or PromptTooLong.

    check: makes the request's check of its settings.
    """
    ids = _ids("prompt", prompt, model.vocab_size)
    if ids.shape[0] == 0:
        raise InvalidRequest("the prompt is empty; give at least one token")
    settings = resolve(config, checkpoint_defaults, model, ids.shape[0])
    pinned = _pinned(pinned, settings.max_new_tokens, model.vocab_size)
    if settings.decoder == "autoregressive" and (pinned or draft is not None):
        raise InvalidRequest("decoder='autoregressive' has no canvas: draft and pinned need decoder='diffusion'")
    draft_ids = None if draft is None else _ids("draft", draft, model.vocab_size)
    first_ids = None if first is None else _ids("first", first, model.vocab_size)
    if first_ids is not None and first_ids.shape[0] == 0:
        raise InvalidRequest("first is empty, so nothing could begin the answer; give at least one id, or None for any")
    return Request(ids, settings, _noises(noise, settings), draft_ids, pinned, first_ids, check(settings))


def _noises(noise: Noise | None, settings: Settings) -> tuple[Noise, ...]:
    if noise is None:
        return tuple(SeededNoise(settings.seed, candidate) for candidate in range(settings.best_of))
    if settings.best_of > 1:
        raise InvalidRequest(f"noise is for one candidate alone and needs best_of=1, found best_of={settings.best_of}")
    return (noise,)


def resolve(
    config: GenerationConfig, checkpoint_defaults: Mapping[str, Any], model: ModelConfig, prompt_tokens: int
) -> Settings:
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
        if config.prefer not in (None, "likely"):
            raise InvalidRequest(
                f"prefer chooses among candidates and needs decoder='diffusion', found prefer={config.prefer!r}"
            )
        if config.revisions not in (None, 0):
            raise InvalidRequest(
                f"revisions correct a canvas and need decoder='diffusion', found revisions={config.revisions}"
            )
        full = replace(full, best_of=1, revisions=0, prefer="likely")  # the checkpoint's are meant for canvases
    if (full.top_k is not None or full.top_p is not None) and full.decoder == "diffusion":
        raise InvalidRequest("top_k and top_p apply to decoder='autoregressive' only; diffusion uses entropy_bound")
    # Every name that RELEASE_DEFAULTS holds is set from here on.
    return Settings(
        max_new_tokens=min(_set(full.max_new_tokens), room),
        canvas_length=_canvas_length(full.canvas_length, model.canvas_length),
        decoder=_set(full.decoder),
        temperature=_set(full.temperature),
        schedule=_schedule(full),
        # A checkpoint's own would overrule a caller who asks for more passes.
        positions_per_pass=full.positions_per_pass if config.max_denoising_steps is None else config.positions_per_pass,
        sampler=EntropyBound(_set(full.entropy_bound), _set(full.budget)),
        stopping=StableAndConfident(
            _set(full.stability_threshold), _set(full.confidence_threshold), _set(full.stability)
        ),
        commit=_set(full.commit),
        eos_ids=frozenset() if full.ignore_eos else frozenset(model.eos_token_ids),
        pad_id=None if full.ignore_eos or model.pad_token_id in model.eos_token_ids else model.pad_token_id,
        silent_ids=frozenset({*model.eos_token_ids, model.pad_token_id} - {None}),
        stop=_set(full.stop),
        seed=_set(full.seed),
        best_of=_set(full.best_of),
        revisions=_set(full.revisions),
        prefer=_set(full.prefer),
        top_k=full.top_k,
        top_p=full.top_p,
        logprobs=full.logprobs,
    )


def _canvas_length(asked: int | str | None, longest: int) -> CanvasLength:
    if asked == "auto":
        return CanvasLength(min(SHORTEST_CANVAS, longest), longest)
    length = longest if asked is None else int(asked)
    if length > longest:
        raise InvalidRequest(f"canvas_length must lie in 1 … {longest} for this model, found {length}")
    return CanvasLength(length, length)


def _schedule(full: GenerationConfig) -> LinearTemperature:
    """The temperature schedule, scaled by `temperature` (0 keeps the scale and proposes the argmax instead)."""
    scale = full.temperature or 1.0
    return LinearTemperature(_set(full.t_min) * scale, _set(full.t_max) * scale, _set(full.max_denoising_steps))


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

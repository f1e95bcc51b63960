"""What all request bodies share: strict types, sampling settings, and an answer for every field that cannot apply.

Three rules for fields. A field that is known here applies. One that other servers know and that cannot apply is refused
by name, or, where it asks for nothing that would change the text, accepted and named in the answer's
`x-scumble-not-applied` header. Any other name is refused.
"""

from __future__ import annotations

import secrets
from dataclasses import fields as dataclass_fields
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from scumble.generation import GenerationConfig
from scumble.serve.errors import ApiError

MAX_STOPS = 16
MAX_SEED = 2**64 - 1
NOT_APPLIED = "x-scumble-not-applied"


class Body(BaseModel):
    """A JSON object with no names but its own; "1" is no number, NaN is none either."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Sampler(Body):
    """Scumble's own settings, under the names of GenerationConfig, which checks their ranges."""

    entropy_bound: float | None = None
    t_min: float | None = None
    t_max: float | None = None
    max_denoising_steps: int | None = None
    positions_per_pass: int | None = None
    stability_threshold: int | None = None
    confidence_threshold: float | None = None
    canvas_length: int | Literal["auto"] | None = None
    ignore_eos: bool | None = None
    decoder: Literal["diffusion", "autoregressive"] | None = None
    best_of: int | None = None
    revisions: int | None = None
    prefer: Literal["likely", "python"] | None = None
    top_k: int | None = None
    budget: Literal["accepted", "changed"] | None = None
    commit: Literal["argmax", "sample"] | None = None
    stability: Literal["argmax_history", "argmax_is_canvas"] | None = None
    drafts: bool = Field(False, description="Stream the canvas after every pass, in an extension field.")

    def sampler_settings(self) -> dict[str, Any]:
        """What was set, by GenerationConfig's names."""
        return {name: getattr(self, name) for name in SAMPLER_NAMES if getattr(self, name) is not None}


SAMPLER_NAMES = tuple(name for name in Sampler.model_fields if name != "drafts")
CONFIG_NAMES = frozenset(field.name for field in dataclass_fields(GenerationConfig))


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool | None = None  # random padding against eavesdroppers: never sent here
    continuous_usage_stats: bool | None = None


class OpenAISampling(Sampler):
    """What chat and completions share."""

    # Accepted and reported: they name no text.
    reported: ClassVar[tuple[str, ...]] = (
        "user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "verbosity", "store",
    )  # fmt: skip
    # Refused where they ask for anything but the default given here.
    refused: ClassVar[dict[str, Any]] = {"frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}}

    model: str | None = None
    n: int = Field(1, ge=1, le=128)
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    temperature: float | None = None
    top_p: float | None = Field(None, ge=0, le=1)
    stop: str | list[str] | None = None
    max_tokens: int | None = Field(None, ge=0)
    stream: bool = False
    stream_options: StreamOptions | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    verbosity: str | None = None
    store: bool | None = None

    def not_applied(self) -> list[str]:
        """Names to report. Raises ApiError for fields that cannot apply and would change the answer."""
        for name, neutral in self.refused.items():
            value = getattr(self, name, None)
            if value is not None and value != neutral:
                raise unsupported(name, f"leave it out or send {neutral}")
        return [name for name in self.reported if getattr(self, name, None) not in (None, False, {}, "auto")]

    def config(self, max_tokens: int | None, logprobs: int | None, **more: Any) -> GenerationConfig:
        """The settings of the request's first answer. Without a seed a random one is drawn, and the answer names it."""
        return GenerationConfig(
            max_new_tokens=max_tokens,
            seed=secrets.randbits(32) if self.seed is None else self.seed,
            temperature=self.temperature,
            top_p=self.top_p if self.top_p not in (None, 0, 1, 1.0) else None,
            stop=checked_stops(self.stop),
            logprobs=logprobs,
            **self.sampler_settings(),
            **more,
        )


class TextPart(Body):
    type: Literal["text", "input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    cache_control: dict[str, Any] | None = None


def checked_stops(stop: str | list[str] | None) -> tuple[str, ...] | None:
    """Stop strings; none at all where the list is empty."""
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > MAX_STOPS:
        raise ApiError(400, f"stop may hold {MAX_STOPS} strings at most, found {len(stops)}", param="stop")
    if any(stop == "" for stop in stops):
        raise ApiError(400, "stop must hold non-empty strings, found ''", param="stop")
    return tuple(stops) or None


def unsupported(name: str, instead: str) -> ApiError:
    return ApiError(400, f"{name} is not supported by this server; {instead}", code="unsupported_parameter", param=name)


def choice_seed(config: GenerationConfig, index: int) -> int:
    """The seed of answer number `index` of a request: the request's seed, then the next ones."""
    return ((config.seed or 0) + index) % (MAX_SEED + 1)


Identifier = Annotated[str, Field(min_length=1, max_length=256)]

"""What all request bodies share: strict types, sampling settings, and an answer for every field that cannot apply.

Three rules for fields. A field that is known here applies. One that other servers know and that cannot apply is refused
by name, or, where it asks for nothing that would change the text, accepted and named in the answer's
`x-scumble-not-applied` header. Any other name is refused.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from scumble.serve.errors import ApiError
from scumble.settings import SETTINGS, GenerationConfig, OneOf, Real, Values, Whole, YesNo

MAX_STOPS = 16
MAX_SEED = 2**64 - 1
NOT_APPLIED = "x-scumble-not-applied"


class Body(BaseModel):
    """A JSON object with no names but its own; "1" is no number, NaN is none either."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


# Names of GenerationConfig for which the APIs have words of their own.
OWN_WORDS = ("max_new_tokens", "seed", "temperature", "top_p", "stop", "logprobs")


def _type_of(values: Values) -> Any:
    """A setting's JSON type; its range is GenerationConfig's business. None: the API does not offer it."""
    if isinstance(values, Whole):
        return int if values.also is None else int | Literal[values.also]  # type: ignore[valid-type]
    if isinstance(values, OneOf):
        return Literal[values.names]  # type: ignore[valid-type]
    return {Real: float, YesNo: bool}.get(type(values))


SAMPLER_TYPES = {
    name: one for name, row in SETTINGS.items() if name not in OWN_WORDS and (one := _type_of(row.values)) is not None
}
_FIELDS: dict[str, Any] = {
    name: (kind | None, Field(None, description=SETTINGS[name].help)) for name, kind in SAMPLER_TYPES.items()
}
_Sampler: Any = create_model("_Sampler", __base__=Body, **_FIELDS)


class Sampler(_Sampler):
    """What all APIs call alike; and Scumble's own settings, one field a row of the settings table."""

    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    temperature: float | None = None
    top_p: float | None = Field(None, ge=0, le=1)
    drafts: bool = Field(False, description="Stream the canvas after every pass, in an extension field.")

    def generation_config(self, max_new_tokens: int | None, **more: Any) -> GenerationConfig:
        """The settings of the request's first answer. Without a seed a random one is drawn, and the answer names it."""
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            seed=secrets.randbits(32) if self.seed is None else self.seed,
            temperature=self.temperature,
            top_p=self.top_p if self.top_p not in (None, 0, 1, 1.0) else None,
            **self.sampler_settings(),
            **more,
        )

    def sampler_settings(self) -> dict[str, Any]:
        """What was set, by GenerationConfig's names."""
        return {name: value for name in SAMPLER_TYPES if (value := getattr(self, name)) is not None}


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool | None = None  # random padding against eavesdroppers: never sent here
    continuous_usage_stats: bool | None = None


class OpenAISampling(Sampler):
    """What chat and completions share."""

    # Accepted and reported: they name no text.
    reported: ClassVar[tuple[str, ...]] = (
        "user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "prompt_cache_options", "moderation", "verbosity", "store",
    )  # fmt: skip
    # Refused where they ask for anything but the default given here.
    refused: ClassVar[dict[str, Any]] = {
        "frequency_penalty": 0, "presence_penalty": 0, "repetition_penalty": 1, "min_p": 0, "logit_bias": {},
    }  # fmt: skip

    model: str | None = None
    n: int = Field(1, ge=1, le=128)
    stop: str | list[str] | None = None
    max_tokens: int | None = Field(None, ge=0)
    stream: bool = False
    stream_options: StreamOptions | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    min_p: float | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None
    verbosity: str | None = None
    store: bool | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def not_applied(self) -> list[str]:
        """Names to report. Raises ApiError for fields that cannot apply and would change the answer."""
        for name, neutral in self.refused.items():
            value = getattr(self, name, None)
            if value is not None and value != neutral:
                raise unsupported(name, f"leave it out or send {neutral}")
        return [name for name in self.reported if getattr(self, name, None) not in (None, False, {}, "auto")]

    def config(self, max_tokens: int | None, logprobs: int | None, **more: Any) -> GenerationConfig:
        return self.generation_config(max_tokens, stop=checked_stops(self.stop), logprobs=logprobs, **more)


class TextPart(Body):
    type: Literal["text", "input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    cache_control: dict[str, Any] | None = None


def plain_text(content: str | Sequence[TextPart] | None) -> str:
    """Content as one string; parts become lines."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.text for part in content)


class Prediction(Body):
    """OpenAI's predicted output: here the text that the canvas starts from."""

    type: Literal["content"]
    content: str | list[TextPart]


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


Identifier = Annotated[str, Field(min_length=1, max_length=256)]

"""From what a request's settings ask of its text (json_schema, regex, choices, grammar) to a constraint on its ids."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scumble.decode.structured import Structured
from scumble.errors import InvalidRequest, TokenizerError
from scumble.model import Transformer
from scumble.settings import GenerationConfig
from scumble.structure import Choices, Grammar, JsonSchema, Language, Regex, Thinking, Vocabulary, compiled
from scumble.text.markers import CHANNEL_CLOSE, CHANNEL_OPEN
from scumble.text.token_bytes import token_bytes
from scumble.text.tokenizer import Tokenizer

KINDS: dict[str, Callable[[Any], Language]] = {
    "json_schema": JsonSchema.of, "regex": Regex, "choices": Choices.of, "grammar": Grammar,
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """constraint: on the answer's ids. parse: what its text means."""

    constraint: Structured
    parse: Callable[[str], Any]


class Structuring:
    """Compiles what requests ask for, for one model and tokenizer. May be used from any thread."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer | None) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._lock = threading.Lock()
        self._vocabulary: Vocabulary | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        if self._tokenizer is None:
            raise TokenizerError("structured output needs a tokenizer, and this model has none")
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(token_bytes(self._tokenizer), self._model.config.vocab_size)
            return self._vocabulary

    def asked(self, config: GenerationConfig, *, may_think: bool = False) -> Asked | None:
        """None where the settings ask for no structure. may_think: thinking may come before the structure.

        Raises StructureError (an InvalidRequest): unsupported, contradictory, too large.
        """
        kind = config.structure
        if kind is None:
            return None
        for name in ("stop", "ignore_eos"):
            if getattr(config, name):
                raise InvalidRequest(f"{name} and {kind} exclude each other: a structure says itself where a text ends")
        value = getattr(config, kind)
        language = KINDS[kind](value)
        parse = getattr(value, "model_validate_json", language.parse)  # a pydantic model makes its own objects
        return Asked(self.constraint(self._thinking(language) if may_think else language), parse)

    def constraint(self, language: Language) -> Structured:
        """Raises StructureError."""
        shape = self._model.config
        if not shape.eos_token_ids:
            raise InvalidRequest("structured output needs a model with an end id, and this one has none")
        found = compiled(language, self.vocabulary, tuple(shape.eos_token_ids))
        filler = found.end_ids[0] if shape.pad_token_id is None else shape.pad_token_id
        return Structured(found, filler, self._model.ops.canvas_law)

    def _thinking(self, language: Language) -> Language:
        assert self._tokenizer is not None
        markers = [self._tokenizer.special_tokens.get(marker) for marker in (CHANNEL_OPEN, CHANNEL_CLOSE)]
        return language if None in markers else Thinking(language, *[id for id in markers if id is not None])


def with_schema(config: GenerationConfig | None, schema: Any) -> GenerationConfig | None:
    """The settings with a JSON Schema or a pydantic model in them."""
    if schema is None:
        return config
    if config is not None and config.structure is not None:
        raise InvalidRequest(f"schema and {config.structure} exclude each other; give one of them")
    return (config or GenerationConfig()).merged({"json_schema": schema})

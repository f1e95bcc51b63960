"""From what a request asks of its text (json_schema, regex, choices, grammar, tool calls) to a constraint on ids."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scumble.decode.structured import Structured
from scumble.errors import InvalidRequest, TokenizerError
from scumble.model import Transformer
from scumble.settings import GenerationConfig
from scumble.structure import (
    Choices,
    Grammar,
    JsonSchema,
    Language,
    Markers,
    Regex,
    TextOrCalls,
    Thinking,
    ToolCalls,
    Vocabulary,
    compiled,
)
from scumble.text.markers import CALL_CLOSE, CALL_OPEN, CHANNEL_CLOSE, CHANNEL_OPEN, QUOTE, TURN_OPEN
from scumble.text.token_bytes import token_bytes
from scumble.text.tokenizer import Tokenizer
from scumble.tool_choice import ToolChoice

KINDS: dict[str, Callable[[Any], Language]] = {
    "json_schema": JsonSchema.of, "regex": Regex, "choices": Choices.of, "grammar": Grammar,
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """constraint: on the answer's ids. parse: what its text means; None: nothing but itself."""

    constraint: Structured
    parse: Callable[[str], Any] | None


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

    def asked(
        self,
        config: GenerationConfig,
        *,
        may_think: bool = False,
        tools: ToolChoice | None = None,
        prompt: Any = (),
    ) -> Asked | None:
        """None where neither the settings nor the choice of tools ask for a structure.

        may_think: thinking may come before the structure. prompt: ids; where they end inside an open thought channel,
        thinking comes first. Raises StructureError (an InvalidRequest): unsupported, contradictory, too large.
        """
        kind = config.structure
        if kind is None and tools is None:
            return None
        for name in ("stop", "ignore_eos") if kind is not None else ("ignore_eos",):
            if getattr(config, name):
                what = kind or "tool_choice"
                raise InvalidRequest(f"{name} and {what} exclude each other: a structure says itself where a text ends")
        language, parse = None, None
        if kind is not None:
            value = getattr(config, kind)
            language = KINDS[kind](value)
            parse = getattr(value, "model_validate_json", language.parse)  # a pydantic model makes its own objects
        if tools is not None:
            if language is not None and tools.is_forced:
                raise InvalidRequest(f"{kind} is of answers in text, but tool_choice asks for a call; give one of them")
            calls = self._calls(tools)
            language = calls if tools.is_forced else TextOrCalls(calls, language)
            parse = None if parse is None else _unless_empty(parse)
        assert language is not None
        return Asked(self.constraint(self._thinking(language, may_think, prompt)), parse)

    def constraint(self, language: Language) -> Structured:
        """Raises StructureError."""
        shape = self._model.config
        if not shape.eos_token_ids:
            raise InvalidRequest("structured output needs a model with an end id, and this one has none")
        found = compiled(language, self.vocabulary, tuple(shape.eos_token_ids))
        return Structured(found, self._model.ops.canvas_law)

    def _calls(self, tools: ToolChoice) -> ToolCalls:
        known = {} if self._tokenizer is None else self._tokenizer.special_tokens
        missing = [marker for marker in (CALL_OPEN, CALL_CLOSE, QUOTE) if marker not in known]
        if missing:
            raise InvalidRequest(
                f"tool_choice needs a model with the markers of tool calls, and the vocabulary of this one lacks "
                f"{', '.join(missing)}"
            )
        return ToolCalls(tools.tools, Markers(known[CALL_OPEN], known[CALL_CLOSE], known[QUOTE]), tools.several)

    def _thinking(self, language: Language, may_think: bool, prompt: Any) -> Language:
        known = {} if self._tokenizer is None else self._tokenizer.special_tokens
        opening, closing = known.get(CHANNEL_OPEN), known.get(CHANNEL_CLOSE)
        if opening is None or closing is None:
            return language
        ids = prompt.tolist() if isinstance(prompt, Tensor) else prompt if isinstance(prompt, Sequence) else ()
        last = next((id for id in reversed(ids) if id in (opening, closing, known.get(TURN_OPEN))), None)
        if last == opening:
            return Thinking(language, opening, closing, opened=True)
        return Thinking(language, opening, closing) if may_think else language


def _unless_empty(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """An answer that calls tools has no text, and no value."""
    return lambda text: None if text == "" else parse(text)


def with_schema(config: GenerationConfig | None, schema: Any) -> GenerationConfig | None:
    """The settings with a JSON Schema or a pydantic model in them."""
    if schema is None:
        return config
    if config is not None and config.structure is not None:
        raise InvalidRequest(f"schema and {config.structure} exclude each other; give one of them")
    return (config or GenerationConfig()).merged({"json_schema": schema})

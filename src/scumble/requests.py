"""What is asked of a model, as requests: ids of texts, conversations and holes, checked against the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scumble.checkpoint.text import read_template
from scumble.decode import Request, make_request
from scumble.diffusion import Noise
from scumble.errors import InvalidRequest, TemplateError, TokenizerError, shown
from scumble.model import Transformer
from scumble.settings import SETTINGS, GenerationConfig
from scumble.structure import Language
from scumble.structuring import Asked, Structuring, with_schema
from scumble.text import ChatTemplate, Message, Tokenizer
from scumble.text.healing import beginning_with, take_back
from scumble.text.infill import encode_infill
from scumble.tool_choice import ToolChoice, of_template

Ids = Sequence[int] | torch.Tensor

INPUTS = ("draft", "pinned", "noise")  # what a request may have besides its prompt and its settings
TEXT_INPUTS = (*INPUTS, "prediction")


class Prompt(NamedTuple):
    """What a text, or a hole in one, is as ids, before it is checked against the model (see `LLM.request`)."""

    ids: tuple[int, ...]
    config: GenerationConfig
    draft: tuple[int, ...] | None
    typed: str


class Requests:
    """Makes the requests of one model: the half of `LLM` that runs nothing. Safe to use from several threads."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None = None,
        *,
        folder: Path | None = None,
        defaults: Mapping[str, Any] | None = None,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.folder = folder
        self.defaults = dict(defaults or {})
        self.structuring = Structuring(model, tokenizer)

    def text_request(self, text: str, config: GenerationConfig | None = None, **inputs: Any) -> Request:
        """What `generate` asks of the engine, checked; for those who want to see it before it runs."""
        config = with_schema(config, inputs.pop("schema", None))
        check_inputs(inputs, TEXT_INPUTS)
        draft = self._predicted(inputs.pop("prediction", None))
        if draft is not None:
            if inputs.get("draft") is not None:
                raise InvalidRequest("prediction and draft both say where the canvas starts; give one of them")
            inputs["draft"] = draft
        if inputs.get("draft") is not None or inputs.get("pinned") is not None:
            return self.request(self.encode_prompt(text), config, **inputs)
        prompt = self.text_prompt(text, config)
        return self.request(prompt.ids, prompt.config, typed=prompt.typed, **inputs)

    def chat_request(
        self, messages: Sequence[Message], config: GenerationConfig | None = None, **template: Any
    ) -> Request:
        """What `chat` asks of the engine.

        Among `template`, `schema` is as for `generate`; `tools`, `tool_choice` and `parallel_tool_calls` are as
        `tool_choice.of_template` says; `prediction` is a text that the answer will probably be like (its last version,
        say), from which the canvas starts instead of from noise.
        """
        config = with_schema(config, template.pop("schema", None))
        draft = self._predicted(template.pop("prediction", None))
        tools, template = of_template(template)
        may_think = bool(template.get("enable_thinking"))
        return self.request(
            self.encode_chat(messages, **template), config, draft=draft, may_think=may_think, tools=tools
        )

    def fill_request(
        self,
        prefix: str,
        suffix: str,
        config: GenerationConfig | None = None,
        damaged: str | None = None,
        *,
        language: Language | None = None,
        draft: Ids | None = None,
    ) -> Request:
        """What `infill` (or `repair`, with `damaged`) asks of the engine. language: what may stand there. draft: ids to
        start from, instead of the damaged text's."""
        prompt = self.fill_prompt(prefix, suffix, config, damaged, heal=language is None and draft is None)
        draft = prompt.draft if draft is None else draft
        return self.request(prompt.ids, prompt.config, draft=draft, typed=prompt.typed, language=language)

    def text_prompt(self, text: str, config: GenerationConfig | None = None) -> Prompt:
        """A text as ids, without the white space that is left to the answer. A structure says itself how an answer
        begins."""
        if config is not None and config.structure is not None:
            return Prompt(tuple(self.encode_prompt(text)), config, None, "")
        ids, typed = take_back(self._need_tokenizer(), text, self.encode_prompt(text))
        return Prompt(tuple(ids), config or GenerationConfig(), None, typed)

    def fill_prompt(
        self,
        prefix: str,
        suffix: str,
        config: GenerationConfig | None = None,
        damaged: str | None = None,
        *,
        heal: bool = True,
    ) -> Prompt:
        """A hole, or a damaged text, with what stands around it, as ids.

        The answer will probably be short: where neither `config` nor the checkpoint chooses a canvas length, canvases
        grow from a short one ("auto"). Raises TokenizerError where the tokenizer lacks the markers.
        """
        tokenizer = self._need_tokenizer()
        try:
            heal = heal and (config is None or config.structure is None)
            ids, typed = encode_infill(tokenizer, prefix, suffix, damaged, self._context, heal=heal)
        except TokenizerError as error:
            raise TokenizerError(f"{self.folder}: {error}") from None
        own = (config or GenerationConfig()).merged({"canvas_length": self.defaults.get("canvas_length", "auto")})
        has_canvas = own.merged(self.defaults).decoder != "autoregressive"
        draft = None if damaged is None or not has_canvas else self.draft(damaged)
        return Prompt(tuple(ids), own, draft, typed)

    def draft(self, text: str) -> tuple[int, ...]:
        """A text, an end, and pads up to the end of any canvas."""
        shape, ids = self.model.config, self._need_tokenizer().encode(text)
        if not shape.eos_token_ids:
            return tuple(ids)
        end = shape.eos_token_ids[0]
        pad = end if shape.pad_token_id is None else shape.pad_token_id
        return (*ids, end, *[pad] * shape.canvas_length)

    def _predicted(self, prediction: Any) -> tuple[int, ...] | None:
        """The draft of a text that the answer will probably be like."""
        if prediction is not None and not isinstance(prediction, str):
            raise InvalidRequest(f"prediction must be a text, found {shown(prediction)}")
        return None if prediction is None else self.draft(prediction)

    def request(
        self,
        ids: Ids,
        config: GenerationConfig | None = None,
        *,
        noise: Noise | None = None,
        draft: Ids | None = None,
        pinned: Mapping[int, int] | None = None,
        typed: str = "",
        may_think: bool = False,
        tools: ToolChoice | None = None,
        language: Language | None = None,
    ) -> Request:
        """Prompt ids and what else is asked, checked against the model. Raises InvalidRequest or PromptTooLong.

        typed: what the answer's first token must begin with, and its text leave out; "": nothing.
        may_think: thinking may come before a structure that config or tools ask for. tools: calls that are guaranteed.
        language: a structure in place of the config's.
        """
        if config is not None and not isinstance(config, GenerationConfig):
            raise InvalidRequest(f"config must be a GenerationConfig, found {shown(config)}")
        first = beginning_with(self._need_tokenizer(), typed) if typed else None
        config = config or GenerationConfig()
        if language is None:
            asked = self.structuring.asked(config, may_think=may_think, tools=tools, prompt=ids)
        else:
            asked = Asked(self.structuring.constraint(language), language.parse)
        constraint = None if asked is None else asked.constraint
        request = make_request(
            ids, config, self.defaults, self.model.config, noise, draft, pinned, first, constraint, typed=typed
        )
        request.constraint.check(request.max_new_tokens, request.vocab)
        return request if asked is None else replace(request, parse=asked.parse)

    def encode_prompt(self, text: str) -> list[int]:
        """Prompt ids of a text: the beginning-of-sequence id, where there is one, then the text as plain data."""
        tokenizer = self._need_tokenizer()
        if not isinstance(text, str):
            raise InvalidRequest(f"a prompt must be a text, found {shown(text)}; token ids go to generate_ids")
        if text == "":
            raise InvalidRequest("the prompt is empty; give at least one character")
        bos = tokenizer.bos_id
        return ([] if bos is None else [bos]) + tokenizer.encode(text, context=self._context)

    def encode_chat(self, messages: Sequence[Message], **template: Any) -> list[int]:
        """Prompt ids of a conversation, by the checkpoint's chat template."""
        check_no_settings(template)
        return self.chat_template.encode(
            messages, self._need_tokenizer(), **{**template, "context_tokens": self._context}
        )

    @cached_property
    def chat_template(self) -> ChatTemplate:
        if self.folder is None:
            raise TemplateError("this LLM was made without a folder, so it has no chat template; use generate")
        return read_template(self.folder, self._need_tokenizer())

    @property
    def _context(self) -> int:
        """How many tokens prompt and answer may have together."""
        return self.model.config.max_position_embeddings

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise TokenizerError(f"{self.folder}: has no tokenizer; text needs one, ids work with generate_ids")
        return self.tokenizer


def check_inputs(inputs: Mapping[str, Any], known: Sequence[str] = INPUTS) -> None:
    """Raises InvalidRequest for a keyword that no request has."""
    for name in inputs:
        if name in SETTINGS:
            raise InvalidRequest(
                f"{name} is a setting; give GenerationConfig({name}={shown(inputs[name])}) as the config"
            )
        if name not in known:
            raise InvalidRequest(
                f"unknown input {name!r}; valid: {', '.join(known)}; settings go into a GenerationConfig"
            )


def check_no_settings(keywords: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for a setting among the keywords: there it would be without effect."""
    for name in keywords:
        if name in SETTINGS:
            raise InvalidRequest(
                f"{name} is a setting; give GenerationConfig({name}={shown(keywords[name])}) as the config"
            )

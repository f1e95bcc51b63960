"""The facade: text in, text out. Ties tokenizer, checkpoint and engine together; sync, streaming and async."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import replace
from functools import cached_property
from importlib import resources
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple, cast, overload

import torch

from scumble import filling, reads
from scumble.answers import Trace, answers, async_answers
from scumble.checkpoint import load_checkpoint, load_config, read_generation_config
from scumble.checkpoint.files import as_folder
from scumble.decode import Request, make_request
from scumble.diffusion import Noise
from scumble.engine import Driver, Engine, Stats
from scumble.errors import InvalidRequest, TemplateError, TokenizerError, shown
from scumble.events import Finished, Generation, StreamEvent
from scumble.filling import Edit, Fill
from scumble.model import Transformer
from scumble.placement import choose_device, choose_dtype
from scumble.reading import is_there
from scumble.reads import Score
from scumble.settings import SETTINGS, GenerationConfig
from scumble.structure import Language
from scumble.structuring import Asked, Structuring, with_schema
from scumble.text import ChatTemplate, Message, Tokenizer
from scumble.text.chat import find_sources
from scumble.text.healing import beginning_with, take_back
from scumble.text.infill import encode_infill

Ids = Sequence[int] | torch.Tensor
Progress = Callable[[int, int], None]


INPUTS = ("draft", "pinned", "noise")  # what a request may have besides its prompt and its settings


def embedded_path() -> Path:
    """The folder of the embedded model, inside the installed package."""
    return Path(str(resources.files("scumble") / "assets" / "embedded"))


class Prompt(NamedTuple):
    """What a text, or a hole in one, is as ids, before it is checked against the model (see `LLM.request`)."""

    ids: tuple[int, ...]
    config: GenerationConfig
    draft: tuple[int, ...] | None
    typed: str


class LLM:
    """A loaded model with its tokenizer. Safe to use from several threads and event loops: all share one engine."""

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
        self._driver = Driver(Engine(model))
        self.structuring = Structuring(model, tokenizer)

    def stats(self) -> Stats:
        """What the engine is doing: requests waiting and running, passes, tokens …."""
        return self._driver.engine.stats

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        *,
        ops: str | None = None,
    ) -> LLM:
        """Load a checkpoint folder in the released format; None loads the embedded model.

        dtype: "float32", "bfloat16", "int8" (weights and activations; quickest), "int4" (weights; smallest) or "auto"
            (as stored; float32 on a CPU without native bfloat16). int8 and int4 run on the CPU only.
        device: "cpu", "cuda", "cuda:1" …, or "auto" (the GPU when there is one).
        ops: which operations serve: "cpu" (native kernels), "reference" (plain torch) …; None: the quickest that
            can, or what the environment variable SCUMBLE_OPS names.
        A folder without tokenizer.json loads for work on ids. Raises CheckpointError or TokenizerError.
        """
        folder = embedded_path() if path is None else as_folder(path)
        where = choose_device(device)
        form = choose_dtype(dtype, where)
        tokenizer, defaults = _read_small_files(folder)  # a mistake there shows before minutes of reading weights
        model = load_checkpoint(folder, form, where, ops)
        return cls(model, tokenizer, folder=folder, defaults=defaults)

    # --- text ---------------------------------------------------------------------------------------------------

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is an iterable of str as well
        self, prompt: str, config: GenerationConfig | None = ..., **inputs: Any
    ) -> Generation: ...
    @overload
    def generate(
        self,
        prompt: Sequence[str],
        config: GenerationConfig | None = ...,
        *,
        progress: Progress | None = ...,
        **inputs: Any,
    ) -> list[Generation]: ...
    def generate(
        self,
        prompt: str | Sequence[str],
        config: GenerationConfig | None = None,
        *,
        progress: Progress | None = None,
        trace: Trace | None = None,
        **inputs: Any,
    ) -> Generation | list[Generation]:
        """Continue a text; or any number of texts, in order. `inputs`: draft and pinned, as for generate_ids; schema, a
        JSON Schema or the class of a pydantic model, for config's json_schema.

        progress: called with how many of how many are done, whenever one is. trace: with a PassDone after every pass.
        Where a text ends in white space that tokens usually begin with (a line break, a blank), the token of it is
        left to the answer, whose first token then begins with it, and whose text leaves it out. Not so with drafts and
        pins, which count positions from the prompt's end.
        """
        config = with_schema(config, inputs.pop("schema", None))
        if isinstance(prompt, (str, bytes, bytearray)) or not isinstance(prompt, Sequence):
            return _last(self.stream_request(self.text_request(prompt, config, **inputs), drafts=False, trace=trace))
        _check_inputs(inputs)
        each = _per_row(inputs, len(prompt))
        requests = [self.text_request(one, config, **own) for one, own in zip(prompt, each, strict=True)]
        return self._all(requests, progress, trace)

    def stream(self, prompt: str, config: GenerationConfig | None = None, **inputs: Any) -> Iterator[StreamEvent]:
        """Continue a text, event by event: a Draft after every pass, Committed text, and Finished at the end."""
        return self.stream_request(self.text_request(prompt, config, **inputs))

    def chat(self, messages: Sequence[Message], config: GenerationConfig | None = None, **template: Any) -> Generation:
        """Answer a conversation, [{"role": "user", "content": "…"}, …]. `template`: tools, enable_thinking, ….

        Raises TemplateError where the model has no chat template.
        """
        return _last(self.stream_request(self.chat_request(messages, config, **template), drafts=False))

    def stream_chat(
        self, messages: Sequence[Message], config: GenerationConfig | None = None, **template: Any
    ) -> Iterator[StreamEvent]:
        """Like `chat`, event by event."""
        return self.stream_request(self.chat_request(messages, config, **template))

    def infill(self, prefix: str, suffix: str, config: GenerationConfig | None = None) -> Generation:
        """The text between prefix and suffix. For models trained to fill in the middle."""
        return _last(self.stream_request(self.fill_request(prefix, suffix, config), drafts=False))

    def stream_infill(self, prefix: str, suffix: str, config: GenerationConfig | None = None) -> Iterator[StreamEvent]:
        """Like `infill`, event by event."""
        return self.stream_request(self.fill_request(prefix, suffix, config))

    def repair(self, prefix: str, damaged: str, suffix: str, config: GenerationConfig | None = None) -> Generation:
        """What `damaged`, between prefix and suffix, should have been. For models trained to repair.

        The canvas starts from the damaged text instead of noise, so it is edited in place: what is right can stay.
        """
        return _last(self.stream_repair(prefix, damaged, suffix, config))

    def stream_repair(
        self, prefix: str, damaged: str, suffix: str, config: GenerationConfig | None = None
    ) -> Iterator[StreamEvent]:
        """Like `repair`, event by event."""
        if damaged is None:
            raise InvalidRequest("there is no damaged text to repair; infill asks for a text without one")
        return self.stream_request(self.fill_request(prefix, suffix, config, damaged))

    # --- on a text, rather than behind it (filling.py, reads.py) ------------------------------------------------

    def fill(self, template: str, config: GenerationConfig | None = None) -> Fill:
        """Fill the holes of a text: "a {{hole}} b {{hole:name max=12 regex=[a-z]+}}". See `filling.parse_template`."""
        return filling.fill(self, template, config)

    def edit(
        self, text: str, instruction: str | None = None, *, region: tuple[int, int] | None = None,
        strength: float = 0.5, config: GenerationConfig | None = None,
    ) -> Edit:  # fmt: skip
        """Write a region of a text anew, starting from what stands there. See `filling.edit`."""
        return filling.edit(self, text, instruction, region=region, strength=strength, config=config)

    def read(self, template: str | Sequence[str], slots: Mapping[str, Sequence[str]], **options: Any) -> Any:
        """Probabilities of labels at the slots of a text, {{name}} -> a Read; of several texts -> a list of them. See
        `reads.read`."""
        if isinstance(template, str):
            return reads.read(self, [template], slots, **options)[0]
        return reads.read(self, template, slots, **options)

    def score(self, text: str) -> Score:
        """How probable the causal model finds a text, token by token."""
        return reads.score(self, text)

    def answer(self, request: Request) -> Generation:
        """The answer to a request that was made by one of the methods below."""
        return _last(self.stream_request(request, drafts=False))

    def alone(self) -> AbstractContextManager[object]:
        """While it is held, the engine does nothing with the model."""
        return self._driver.alone()

    # --- requests -----------------------------------------------------------------------------------------------

    def text_request(self, text: str, config: GenerationConfig | None = None, **inputs: Any) -> Request:
        """What `generate` asks of the engine, checked; for those who want to see it before it runs."""
        config = with_schema(config, inputs.pop("schema", None))
        _check_inputs(inputs)
        if inputs.get("draft") is not None or inputs.get("pinned") is not None:
            return self.request(self.encode_prompt(text), config, **inputs)
        prompt = self.text_prompt(text, config)
        return self.request(prompt.ids, prompt.config, typed=prompt.typed, **inputs)

    def chat_request(
        self, messages: Sequence[Message], config: GenerationConfig | None = None, **template: Any
    ) -> Request:
        """What `chat` asks of the engine. `schema` among `template`: as for `generate`."""
        config = with_schema(config, template.pop("schema", None))
        may_think = bool(template.get("enable_thinking"))
        return self.request(self.encode_chat(messages, **template), config, may_think=may_think)

    def fill_request(
        self, prefix: str, suffix: str, config: GenerationConfig | None = None, damaged: str | None = None,
        *, language: Language | None = None, draft: Ids | None = None,
    ) -> Request:  # fmt: skip
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
        self, prefix: str, suffix: str, config: GenerationConfig | None = None, damaged: str | None = None,
        *, heal: bool = True,
    ) -> Prompt:  # fmt: skip
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

    def request(
        self, ids: Ids, config: GenerationConfig | None = None, *, noise: Noise | None = None, draft: Ids | None = None,
        pinned: Mapping[int, int] | None = None, typed: str = "", may_think: bool = False,
        language: Language | None = None,
    ) -> Request:  # fmt: skip
        """Prompt ids and what else is asked, checked against the model. Raises InvalidRequest or PromptTooLong.

        typed: what the answer's first token must begin with, and its text leave out; "": nothing.
        may_think: thinking may come before a structure that the config asks for. language: a structure in place of the
        config's.
        """
        if config is not None and not isinstance(config, GenerationConfig):
            raise InvalidRequest(f"config must be a GenerationConfig, found {shown(config)}")
        first = beginning_with(self._need_tokenizer(), typed) if typed else None
        config = config or GenerationConfig()
        if language is None:
            asked = self.structuring.asked(config, may_think=may_think)
        else:
            asked = Asked(self.structuring.constraint(language), language.parse)
        constraint = None if asked is None else asked.constraint
        request = make_request(
            ids, config, self.defaults, self.model.config, noise, draft, pinned, first, constraint, typed=typed
        )
        if asked is None:
            return request
        asked.constraint.check(request.max_new_tokens)
        return replace(request, parse=asked.parse)

    def stream_request(
        self, request: Request, *, drafts: bool = True, trace: Trace | None = None
    ) -> Iterator[StreamEvent]:
        """Answer a request, event by event; without drafts, those are not made."""
        return self.stream_requests([request], drafts=drafts, trace=trace)

    def stream_requests(
        self, requests: Iterable[Request], *, drafts: bool = True, trace: Trace | None = None
    ) -> Iterator[StreamEvent]:
        """Answer requests side by side; events carry their row. However many there are, few are in the engine at a
        time."""
        return answers(self._driver, self.tokenizer, requests, drafts, trace)

    def _all(
        self, requests: Sequence[Request], progress: Progress | None, trace: Trace | None = None
    ) -> list[Generation]:
        done: list[Generation | None] = [None] * len(requests)
        finished = 0
        for event in self.stream_requests(requests, drafts=False, trace=trace):
            if isinstance(event, Finished):
                done[event.row] = event.generation
                finished += 1
                if progress is not None:
                    progress(finished, len(done))
        return cast(list[Generation], done)

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
        _check_no_settings(template)
        return self.chat_template.encode(
            messages, self._need_tokenizer(), **{**template, "context_tokens": self._context}
        )

    @cached_property
    def chat_template(self) -> ChatTemplate:
        if self.folder is None:
            raise TemplateError("this LLM was made without a folder, so it has no chat template; use generate")
        return ChatTemplate.from_folder(self.folder, self._need_tokenizer())

    @property
    def _context(self) -> int:
        """How many tokens prompt and answer may have together."""
        return self.model.config.max_position_embeddings

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise TokenizerError(f"{self.folder}: has no tokenizer.json; text needs one, ids work with generate_ids")
        return self.tokenizer

    # --- async --------------------------------------------------------------------------------------------------

    async def agenerate(self, prompt: str, config: GenerationConfig | None = None, **inputs: Any) -> Generation:
        """Like `generate`; the event loop stays free. Cancelling it ends the work after the present pass."""
        return await self._answer(lambda: self.text_request(prompt, config, **inputs))

    async def achat(
        self, messages: Sequence[Message], config: GenerationConfig | None = None, **template: Any
    ) -> Generation:
        """Like `chat`, in the manner of `agenerate`."""
        return await self._answer(lambda: self.chat_request(messages, config, **template))

    def astream(
        self, prompt: str, config: GenerationConfig | None = None, *, drafts: bool = True, **inputs: Any
    ) -> AsyncGenerator[StreamEvent, None]:
        """Like `stream`; the event loop stays free while the model works. Closing it cancels the request."""
        return self._astream(lambda: self.text_request(prompt, config, **inputs), drafts)

    def astream_chat(
        self,
        messages: Sequence[Message],
        config: GenerationConfig | None = None,
        *,
        drafts: bool = True,
        **template: Any,
    ) -> AsyncGenerator[StreamEvent, None]:
        """Like `stream_chat`, in the manner of `astream`."""
        return self._astream(lambda: self.chat_request(messages, config, **template), drafts)

    def astream_request(self, request: Request, *, drafts: bool = True) -> AsyncGenerator[StreamEvent, None]:
        """Like `stream_request`, in the manner of `astream`."""
        return async_answers(self._driver, self.tokenizer, request, drafts)

    async def _astream(self, make: Callable[[], Request], drafts: bool) -> AsyncGenerator[StreamEvent, None]:
        request = await asyncio.to_thread(make)  # a long prompt takes its time to encode
        async with aclosing(self.astream_request(request, drafts=drafts)) as events:
            async for event in events:
                yield event

    async def _answer(self, make: Callable[[], Request]) -> Generation:
        async with aclosing(self._astream(make, drafts=False)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    return event.generation
        raise AssertionError("a stream ends with Finished")

    # --- ids ----------------------------------------------------------------------------------------------------

    def generate_ids(
        self,
        ids: Ids | Sequence[Ids],
        config: GenerationConfig | Sequence[GenerationConfig] | None = None,
        *,
        noise: Noise | Sequence[Noise] | None = None,
        draft: Any = None,
        pinned: Any = None,
        trace: Trace | None = None,
    ) -> Any:
        """Continue a list of ids -> Generation; or several lists in one batch -> a list of Generations.

        draft: ids the answer starts from, from its position 0, instead of noise. pinned: {answer position: id},
        which stay. For a batch noise, draft and pinned are lists, one entry a row, and config may be one too.
        trace is called with a PassDone after every pass of every row.
        """
        inputs = {"noise": noise, "draft": draft, "pinned": pinned}
        if not isinstance(ids, Sequence) or len(ids) == 0 or isinstance(ids[0], Integral | float):
            return self._all([self.request(cast(Ids, ids), cast(Any, config), **inputs)], None, trace)[0]
        return self._all(self._requests(cast(Sequence[Ids], ids), config, inputs), None, trace)

    def stream_ids(
        self,
        ids: Sequence[Ids],
        config: GenerationConfig | Sequence[GenerationConfig] | None = None,
        *,
        trace: Trace | None = None,
        **inputs: Any,
    ) -> Iterator[StreamEvent]:
        """Continue several lists of ids side by side; events carry their row. Checks all requests before it starts.

        inputs: those of `request`, each a list with one entry a row.
        """
        _check_inputs({name: value for name, value in inputs.items() if name != "typed"})
        return self.stream_requests(self._requests(ids, config, inputs), trace=trace)

    def _requests(
        self,
        ids: Sequence[Ids],
        config: GenerationConfig | Sequence[GenerationConfig] | None,
        inputs: Mapping[str, Any],
    ) -> list[Request]:
        each = _per_row({**inputs, "config": config} if isinstance(config, Sequence) else inputs, len(ids))
        shared = {} if isinstance(config, Sequence) else {"config": config}
        return [self.request(own, **shared, **rest) for own, rest in zip(ids, each, strict=True)]


def _read_small_files(folder: Path) -> tuple[Tokenizer | None, dict[str, Any]]:
    """The tokenizer and the generation settings of a folder. Raises for any file beside the weights that is damaged."""
    config, defaults = load_config(folder), read_generation_config(folder)
    if not is_there(folder / "tokenizer.json"):
        return None, defaults
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise TokenizerError(
            f"{folder}: tokenizer.json has {tokenizer.vocab_size} tokens, the model only {config.vocab_size}"
        )
    find_sources(folder)
    return tokenizer, defaults


def _last(events: Iterator[StreamEvent]) -> Generation:
    """Run a stream of one request to its end."""
    for event in events:
        if isinstance(event, Finished):
            return event.generation
    raise AssertionError("a stream ends with Finished")


def _check_inputs(inputs: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for a keyword that no request has."""
    for name in inputs:
        if name in SETTINGS:
            raise InvalidRequest(
                f"{name} is a setting; give GenerationConfig({name}={shown(inputs[name])}) as the config"
            )
        if name not in INPUTS:
            raise InvalidRequest(
                f"unknown input {name!r}; valid: {', '.join(INPUTS)}; settings go into a GenerationConfig"
            )


def _check_no_settings(keywords: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for a setting among the keywords: there it would be without effect."""
    for name in keywords:
        if name in SETTINGS:
            raise InvalidRequest(
                f"{name} is a setting; give GenerationConfig({name}={shown(keywords[name])}) as the config"
            )


def _per_row(inputs: Mapping[str, Any], rows: int) -> list[dict[str, Any]]:
    """Inputs of a batch, lists with one entry a row, as the inputs of each row. None: unset for all."""
    given = {name: values for name, values in inputs.items() if values is not None}
    for name, values in given.items():
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != rows:
            raise InvalidRequest(f"{name} must be a list with one entry a row ({rows}), found {shown(values)}")
    return [{name: values[row] for name, values in given.items()} for row in range(rows)]


__all__ = ["LLM", "embedded_path"]
